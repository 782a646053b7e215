//! Why a request gets no answer.

use crate::domain::error_code::ErrorCode;

/// Why a request gets no answer.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct ServeError {
    /// Public code.
    pub code: ErrorCode,
    /// For the client; for [`ErrorCode::InternalError`] for the log only.
    pub message: String,
    /// The field of the request at fault, as OpenAI names it.
    pub param: Option<&'static str>,
}

impl ServeError {
    pub(super) fn new(code: ErrorCode, message: String) -> Self {
        Self { code, message, param: None }
    }

    /// An error caused by a field of the request.
    pub(super) fn about(param: &'static str, code: ErrorCode, message: String) -> Self {
        Self { code, message, param: Some(param) }
    }

    /// A fault of the engine. The client reads that the request failed, the log says why.
    pub(super) fn engine_failed(message: String) -> Self {
        Self::new(ErrorCode::InternalError, message)
    }
}
