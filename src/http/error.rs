//! Error replies: OpenAI's envelope, from the table of public codes.
//!
//! Every rejection of every layer becomes an [`ApiError`], so that no reply is plain text. The cause of an
//! internal error is logged, and the client gets one fixed sentence.

use std::time::Duration;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use crate::blobs::BlobError;
use crate::domain::error_code::{ErrorCode, ErrorType};
use crate::serve::ServeError;
use crate::store::StoreError;
use crate::util::excerpt::{cut, excerpt};
use crate::validate::Refusal;

/// Most bytes of an error's message, whatever it quotes.
const MAX_MESSAGE_BYTES: usize = 4000;

/// Default of `Retry-After`.
const RETRY_AFTER: Duration = Duration::from_secs(2);

/// `Retry-After` while the queue is full: jobs take minutes, and OpenAI's clients wait two minutes at most.
const RETRY_AFTER_FULL_QUEUE: Duration = Duration::from_secs(30);

/// An error reply.
#[derive(Debug)]
pub struct ApiError {
    code: ErrorCode,
    message: String,
    param: Option<String>,
    retry_after: Duration,
}

/// What handlers return.
pub type ApiResult<T> = Result<T, ApiError>;

/// OpenAI's envelope.
#[derive(Debug, Serialize, ToSchema)]
pub struct ErrorBody {
    /// What went wrong.
    error: ErrorDetail,
}

/// What went wrong; all four keys are always there.
#[derive(Debug, Serialize, ToSchema)]
pub struct ErrorDetail {
    /// For people: what, where, and what to do.
    message: String,
    /// The kind of error.
    #[serde(rename = "type")]
    kind: String,
    /// The field at fault.
    param: Option<String>,
    /// For programs.
    code: Option<String>,
}

impl ApiError {
    /// An error of the table.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        let message = cut(message.into(), MAX_MESSAGE_BYTES);
        Self { code, message, param: None, retry_after: RETRY_AFTER }
    }

    /// A field of the request that is wrong.
    pub fn field(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(ErrorCode::InvalidRequest, message).with_param(param)
    }

    /// The 404 of an object that does not exist, or that belongs to another project.
    pub fn not_found(code: ErrorCode, noun: &str, id: &str) -> Self {
        Self::new(code, format!("there is no {noun} {:?}", excerpt(id)))
    }

    /// Names the field at fault.
    pub fn with_param(mut self, param: impl Into<String>) -> Self {
        self.param = Some(excerpt(&param.into()).into_owned());
        self
    }

    /// Sets when the client may try again.
    pub fn with_retry_after(mut self, wait: Duration) -> Self {
        self.retry_after = wait;
        self
    }

    /// An internal error. `cause` is only logged.
    pub fn internal(cause: impl std::fmt::Display) -> Self {
        tracing::error!(error = %cause, "a request failed");
        Self::new(ErrorCode::InternalError, "the server had an error; its log says more")
    }

    /// The 507 of a full disk.
    fn full_disk() -> Self {
        let message = "the server's disk is full: delete files or models, which works all the same, or \
                       ask whoever runs the server for room";
        Self::new(ErrorCode::InsufficientStorage, message)
    }

    /// The envelope as text, for a reply that has begun already.
    pub fn into_json(self) -> String {
        serde_json::json!(ErrorBody::from(self)).to_string()
    }
}

impl From<ApiError> for ErrorBody {
    fn from(error: ApiError) -> Self {
        Self {
            error: ErrorDetail {
                message: error.message,
                kind: error.code.error_type().as_str().to_owned(),
                param: error.param,
                code: error.code.on_the_wire().map(str::to_owned),
            },
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let (code, retry_after) = (self.code, self.retry_after);
        let status =
            StatusCode::from_u16(code.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = ErrorBody::from(self);
        let mut response = (status, Json(body)).into_response();
        let is_temporary =
            code.error_type() == ErrorType::RateLimit || status == StatusCode::SERVICE_UNAVAILABLE;
        if is_temporary {
            let headers = response.headers_mut();
            // Whole seconds, rounded up, so that the client does not come too early.
            let seconds = retry_after.as_secs() + u64::from(retry_after.subsec_nanos() > 0);
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds.max(1)));
        }
        if status == StatusCode::GATEWAY_TIMEOUT {
            // OpenAI's clients would repeat the request that has just taken too long.
            let no = HeaderValue::from_static("false");
            response.headers_mut().insert("x-should-retry", no);
        }
        if status == StatusCode::UNAUTHORIZED {
            let scheme = HeaderValue::from_static("Bearer");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, scheme);
        }
        if status == StatusCode::PAYLOAD_TOO_LARGE {
            // The rest of the body is not read: the client must not send another request after it.
            let close = HeaderValue::from_static("close");
            response.headers_mut().insert(header::CONNECTION, close);
        }
        response
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::UnknownCursor(id) => {
                Self::new(ErrorCode::InvalidCursor, format!("there is no item {:?} in this list", excerpt(&id)))
                    .with_param("after")
            }
            StoreError::MissingFile(id) => {
                Self::new(ErrorCode::InvalidFile, format!("there is no file {:?} any more", excerpt(&id)))
            }
            StoreError::QueueFull(most) => Self::new(
                ErrorCode::RateLimitExceeded,
                format!(
                    "{most} jobs of this project are queued, which is the most: try again when one has \
                     started, or cancel one"
                ),
            )
            .with_retry_after(RETRY_AFTER_FULL_QUEUE),
            StoreError::Full => Self::full_disk(),
            other => Self::internal(other),
        }
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        Self::new(refusal.code, refusal.message).with_param(refusal.param)
    }
}

impl From<BlobError> for ApiError {
    fn from(error: BlobError) -> Self {
        match error {
            BlobError::Full => Self::full_disk(),
            other => Self::internal(other),
        }
    }
}

impl From<ServeError> for ApiError {
    fn from(error: ServeError) -> Self {
        match error.code {
            ErrorCode::InternalError => Self::internal(error.message),
            code => {
                let param = error.param.map(str::to_owned);
                Self { param, ..Self::new(code, error.message) }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_timeout_has_openais_envelope_and_is_not_retried() {
        let response = ApiError::new(ErrorCode::TimedOut, "no answer").into_response();
        assert_eq!(response.status(), StatusCode::GATEWAY_TIMEOUT);
        assert_eq!(response.headers()["x-should-retry"], "false");
        let body = axum::body::to_bytes(response.into_body(), 1 << 10).await.expect("a body");
        let body: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
        assert_eq!(body["error"]["code"], "timed_out");
        let other = ApiError::internal("a fault").into_response();
        assert!(!other.headers().contains_key("x-should-retry"));
    }
}
