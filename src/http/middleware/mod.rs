//! What every request passes before its handler: request id, foreign web pages, API key, rate limit, time
//! limit, CORS.

pub mod authenticate;
pub mod concurrency_limit;
pub mod cors;
pub mod rate_limit;
pub mod request_id;
pub mod request_timeout;
pub mod web_pages;
