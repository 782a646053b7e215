//! Routes for whoever operates the server: health, metrics, the document of the API.

pub mod health;
pub mod metrics;
pub mod openapi;
