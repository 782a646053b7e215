//! Connections: the accept loop, their limit, keep-alive, and the timeouts of request bodies.

pub mod accept;
pub mod body_timeout;
mod connections;
pub(in crate::http) mod held_body;
pub mod keep_alive;
