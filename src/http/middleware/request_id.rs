//! The `x-request-id` of every reply.

use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;

use crate::domain::ids;

/// The header.
const NAME: HeaderName = HeaderName::from_static("x-request-id");

/// Gives every reply an `x-request-id`: the client's own, if it is a valid one, or a new one.
pub(in crate::http) async fn set_request_id(request: Request, next: Next) -> Response {
    let sent = request.headers().get(&NAME).and_then(|value| value.to_str().ok());
    let is_valid = |id: &&str| {
        (1..=64).contains(&id.len())
            && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
    };
    let id = sent.filter(is_valid).map_or_else(ids::new_request_id, str::to_owned);
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let mut response = next.run(request).await;
    tracing::debug!(request.id = id, %method, path, status = response.status().as_u16(), "answered");
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(NAME, value);
    }
    response
}
