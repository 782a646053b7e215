//! Why a base model cannot be read or loaded.

use std::path::Path;

use crate::train::backend::BackendError;
use crate::train::device::DeviceError;

/// What can go wrong while a base model is read.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A file of the model cannot be read.
    #[error("{path}: {source}")]
    Io {
        /// Which file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// A file of the model is not what it should be.
    #[error("{path}: {reason}")]
    Malformed {
        /// Which file.
        path: String,
        /// What is wrong and what to do.
        reason: String,
    },
    /// The architecture is not one that hone trains.
    #[error("architecture {found:?} is not supported; hone knows {known}")]
    UnknownArchitecture {
        /// What the configuration says.
        found: String,
        /// What there is.
        known: String,
    },
    /// Tensors are missing, or have another shape than the configuration says.
    #[error("the weights do not fit the configuration: {0}")]
    Tensors(String),
}

impl LoadError {
    /// A file that cannot be read.
    pub fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io { path: path.display().to_string(), source }
    }

    /// A file that is not what it should be.
    pub fn malformed(path: &Path, reason: impl Into<String>) -> Self {
        Self::Malformed { path: path.display().to_string(), reason: reason.into() }
    }

    /// A tensor that nobody has.
    pub(super) fn no_tensor(name: &str) -> Self {
        Self::Tensors(format!("{name:?} is missing"))
    }
}

/// Why an engine cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadModelError {
    /// The model's files.
    #[error(transparent)]
    Model(#[from] LoadError),
    /// What should be adapted is not there.
    #[error("{0}")]
    Target(String),
    /// The device cannot be had.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The device failed.
    #[error(transparent)]
    Engine(#[from] BackendError),
}
