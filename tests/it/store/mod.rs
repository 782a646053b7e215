//! Promises of the store, on every implementation.

pub mod conformance;
pub mod disk;
pub mod random_operations;
pub mod sqlite;
pub mod webhooks;
