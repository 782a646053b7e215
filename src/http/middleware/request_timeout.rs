//! The time limit of a request without an upload and without generation.

use std::time::Duration;

use axum::extract::Request;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::domain::error_code::ErrorCode;
use crate::http::error::ApiError;

/// Longest time that a request may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

/// Ends a request that takes longer than [`REQUEST_TIMEOUT`].
pub(in crate::http) async fn enforce_request_timeout(request: Request, next: Next) -> Response {
    let Ok(response) = tokio::time::timeout(REQUEST_TIMEOUT, next.run(request)).await else {
        let message =
            format!("the server had no answer within {} seconds", REQUEST_TIMEOUT.as_secs());
        return ApiError::new(ErrorCode::TimedOut, message).into_response();
    };
    response
}
