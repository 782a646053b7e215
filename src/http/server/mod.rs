//! Connections: the accept loop, keep-alive, and the timeouts of request bodies.

pub mod accept;
pub mod body_timeout;
pub mod keep_alive;
