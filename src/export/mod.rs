//! Stage 5, what a job made in the formats of other programs: PEFT's adapter, a merged model in
//! Hugging Face's layout, llama.cpp's adapter and llama.cpp's model.
//!
//! [`fetch`] finds a model and brings its files, [`Tuned`] opens them with the base, [`write`] puts a
//! format into a folder. Called by `http::fine_tuning::adapter` and by `hone export`.

pub mod fetch;
mod gguf_adapter;
mod gguf_model;
mod merged;
mod modelfile;
mod settings;
mod tuned;
mod vocabulary;

use std::io;
use std::path::Path;

use clap::ValueEnum;

pub use self::tuned::Tuned;
use crate::artifacts::gguf::Type;
use crate::artifacts::peft::{self, PeftError};
use crate::train::model::error::LoadError;

/// What a model can be handed out as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// The adapter in the layout of Hugging Face PEFT, which vLLM reads as well.
    Peft,
    /// A whole model in Hugging Face's layout.
    Merged,
    /// The adapter for llama.cpp's `--lora`.
    GgufLora,
    /// A whole model for llama.cpp and Ollama.
    Gguf,
}

impl Format {
    /// Every format.
    pub const ALL: &'static [Format] = &[Self::Peft, Self::Merged, Self::GgufLora, Self::Gguf];

    /// The spelling in requests and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Peft => "peft",
            Self::Merged => "merged",
            Self::GgufLora => "gguf-lora",
            Self::Gguf => "gguf",
        }
    }

    /// Whether it holds a model of its own; the others are adapters beside a base.
    pub fn is_whole(self) -> bool {
        matches!(self, Self::Merged | Self::Gguf)
    }

    /// How the matrices are stored when that is asked for.
    ///
    /// # Errors
    /// When something is asked for where there is no choice.
    pub fn quantization(self, asked: Option<Quantization>) -> Result<Quantization, NoQuantization> {
        match asked {
            Some(_) if self != Self::Gguf => Err(NoQuantization(self)),
            asked => Ok(asked.unwrap_or(Quantization::F16)),
        }
    }
}

/// A format whose matrices are stored in one way alone.
#[derive(Debug, thiserror::Error)]
#[error("quantization is of the format \"gguf\" alone, and the format is {:?}", .0.as_str())]
pub struct NoQuantization(Format);

/// How the matrices of a GGUF model are stored; norms and biases are 32-bit floats in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Quantization {
    /// 16-bit floats.
    F16,
    /// 8 bits.
    #[value(name = "q8_0")]
    Q8_0,
}

impl Quantization {
    /// Every one.
    pub const ALL: &'static [Quantization] = &[Self::F16, Self::Q8_0];

    /// The spelling in requests and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::F16 => "f16",
            Self::Q8_0 => "q8_0",
        }
    }

    fn kind(self) -> Type {
        match self {
            Self::F16 => Type::F16,
            Self::Q8_0 => Type::Q8_0,
        }
    }
}

/// Why a model cannot be handed out in a format.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The format cannot hold this model; what to do instead stands beside.
    #[error("{0}")]
    Unsupported(String),
    /// The base model, or the whole model that was made.
    #[error(transparent)]
    Model(#[from] LoadError),
    /// The adapter's files.
    #[error(transparent)]
    Adapter(#[from] PeftError),
    /// The adapter's tensors and the base model are not of each other.
    #[error("the adapter does not fit the base model: {0}")]
    Mismatch(String),
    /// A file cannot be read or written.
    #[error("{0}")]
    Io(#[from] io::Error),
}

impl ExportError {
    /// An adapter is asked for of a whole model.
    pub fn no_adapter(name: &str, format: Format) -> Self {
        Self::Unsupported(format!(
            "{name:?} is a whole model, so there is no adapter of it as {:?}: export it as {:?} or \
             {:?}",
            format.as_str(),
            Format::Merged.as_str(),
            Format::Gguf.as_str()
        ))
    }
}

/// Writes a model into `folder`, which is there and empty. The files are complete when this returns;
/// after an error some may be there, so the folder is one that nobody looks into before.
///
/// # Errors
/// A format that cannot hold the model, by name and with what to do; files that cannot be read or
/// written.
pub fn write(
    tuned: &Tuned,
    format: Format,
    quantization: Quantization,
    folder: &Path,
) -> Result<(), ExportError> {
    match format {
        Format::Peft => {
            let adapter = tuned.adapter(format)?;
            Ok(peft::write(folder, &adapter.config, &adapter.tensors)?)
        }
        Format::Merged => merged::write(tuned, folder),
        Format::GgufLora => gguf_adapter::write(tuned, folder),
        Format::Gguf => gguf_model::write(tuned, quantization, folder),
    }
}
