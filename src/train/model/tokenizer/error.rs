//! Why a tokenizer cannot be used.

/// What can be wrong with a tokenizer.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct TokenizerError(pub String);
