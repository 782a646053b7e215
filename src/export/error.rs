//! Why a model cannot be exported.

use std::io;

use super::format::ExportFormat;
use crate::artifacts::peft::PeftError;
use crate::train::model::error::LoadError;

/// Why a model cannot be exported in a format.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The format cannot hold this model. The message says what to do instead.
    #[error("{0}")]
    Unsupported(String),
    /// The base model or the whole model cannot be opened.
    #[error(transparent)]
    Model(#[from] LoadError),
    /// The files of the adapter cannot be read or written.
    #[error(transparent)]
    Adapter(#[from] PeftError),
    /// The adapter's tensors do not match those of the base model.
    #[error("the adapter does not fit the base model: {0}")]
    Mismatch(String),
    /// A file cannot be read or written.
    #[error("{0}")]
    Io(#[from] io::Error),
}

impl ExportError {
    /// An adapter of a whole model is requested.
    pub fn no_adapter(name: &str, format: ExportFormat) -> Self {
        Self::Unsupported(format!(
            "{name:?} is a whole model, so there is no adapter of it as {:?}: export it as {:?} or \
             {:?}",
            format.as_str(),
            ExportFormat::Merged.as_str(),
            ExportFormat::Gguf.as_str()
        ))
    }
}
