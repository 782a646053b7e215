//! Promises to unmodified programs of others.

pub mod migration_guide;
pub mod real_clients;
