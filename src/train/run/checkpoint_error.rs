//! What can go wrong with checkpoints.

use std::io;

use crate::artifacts::peft::PeftError;
use crate::train::backend::BackendError;
use crate::train::model::error::LoadError;

/// What can go wrong with checkpoints.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// A file or folder.
    #[error("{path}: {source}")]
    Io {
        /// Which.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// The adapter's files.
    #[error(transparent)]
    Peft(#[from] PeftError),
    /// The engine cannot give or take its state.
    #[error(transparent)]
    Engine(#[from] BackendError),
    /// The weights of a model cannot be read.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A checkpoint is damaged.
    #[error("{0}")]
    Damaged(String),
}
