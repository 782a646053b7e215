//! What can go wrong while a device computes.

/// What can go wrong while the engine computes.
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
        /// What the device says.
        reason: String,
    },
    /// Tensors that do not fit this model.
    #[error("the tensors do not fit the model: {0}")]
    Tensors(String),
    /// Asked for what the backend does not do.
    #[error("the {backend} backend trains LoRA alone, not the model's own weights")]
    FrozenWeights {
        /// Which backend.
        backend: &'static str,
    },
    /// The model as it was before it trained is asked for, and its own weights have moved.
    #[error("the model's own weights have been trained: the base is not there any more")]
    BaseIsGone,
    /// A sequence that the model cannot take.
    #[error("{0}")]
    Sequence(String),
}

/// What a backend or the engine above it returns.
pub type Outcome<T> = Result<T, BackendError>;
