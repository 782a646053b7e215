//! Routes for the operator of the server: health, metrics, the OpenAPI document.

pub mod health;
pub mod metrics;
pub mod openapi;
