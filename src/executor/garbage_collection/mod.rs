//! Garbage collection: once at start-up, and periodically while the server runs.

pub(super) mod periodic;
pub(super) mod start_up;
