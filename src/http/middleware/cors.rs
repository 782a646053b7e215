//! CORS: which web pages may call the API. There are none unless their origins are listed.

use std::time::Duration;

use axum::http::{HeaderName, HeaderValue, Method, header};
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

/// How long a browser may cache a preflight reply.
const MAX_AGE: Duration = Duration::from_secs(3600);

/// Answers preflight requests, which carry no key, and adds the CORS headers for these origins to every
/// reply.
pub(in crate::http) fn layer(origins: Vec<HeaderValue>) -> CorsLayer {
    CorsLayer::new()
        .allow_origin(AllowOrigin::list(origins))
        .allow_methods([Method::GET, Method::POST, Method::DELETE])
        // Whatever a client sends: OpenAI's have a dozen headers of their own.
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers([
            header::CONTENT_DISPOSITION,
            header::CONTENT_RANGE,
            header::RETRY_AFTER,
            HeaderName::from_static("x-request-id"),
        ])
        .max_age(MAX_AGE)
}
