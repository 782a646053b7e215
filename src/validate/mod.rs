//! Stage 2: is a request valid? Pure functions, which `http` calls while it reads a request.

pub mod chat_template;
pub mod data_file;
pub mod fields;
pub mod file_request;
pub mod hyperparameters;
mod integrations;
pub mod job_request;
mod method;
pub mod permission_request;
pub mod upload_request;
pub mod webhook_request;

use crate::domain::error_code::ErrorCode;
use crate::util::excerpt::excerpt;

/// Why a request is refused: which field, and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Public code.
    pub code: ErrorCode,
    /// The field at fault.
    pub param: String,
    /// What is wrong and what to do.
    pub message: String,
}

impl Refusal {
    /// A value that is wrong.
    pub fn new(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::with_code(ErrorCode::InvalidRequest, param, message)
    }

    /// A refusal with a code of its own.
    pub fn with_code(
        code: ErrorCode,
        param: impl Into<String>,
        message: impl Into<String>,
    ) -> Self {
        Self { code, param: excerpt(&param.into()).into_owned(), message: message.into() }
    }

    /// The same refusal, of a field inside of `outer`.
    fn within(mut self, outer: &str) -> Self {
        self.param = match self.param.as_str() {
            "" => outer.to_owned(),
            inner => format!("{outer}.{inner}"),
        };
        self
    }
}
