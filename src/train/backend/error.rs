//! Errors of a backend.

/// Errors of a backend and of the engine above it.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// The device failed.
    #[error("the {backend} backend failed: {reason}")]
    Backend {
        /// Which backend.
        backend: &'static str,
        /// Why.
        reason: String,
    },
    /// The device's memory is full.
    #[error("the {backend} backend ran out of memory: {reason}")]
    OutOfMemory {
        /// Which backend.
        backend: &'static str,
        /// The message of the device.
        reason: String,
    },
    /// Tensors that do not fit the model.
    #[error("the tensors do not fit the model: {0}")]
    Tensors(String),
    /// The backend does not train the model's own weights.
    #[error("the {backend} backend trains LoRA alone, not the model's own weights")]
    FrozenWeights {
        /// Which backend.
        backend: &'static str,
    },
    /// The base model is needed, and its own weights have been trained.
    #[error("the model's own weights have been trained: the base is not there any more")]
    BaseIsGone,
    /// A sequence that the model does not accept.
    #[error("{0}")]
    Sequence(String),
}

/// Result of a backend or of the engine above it.
pub type Outcome<T> = Result<T, BackendError>;
