//! Connections: who is let in, how long each may rest, how fast a body must come.

pub mod accept;
pub mod body_timeout;
pub mod keep_alive;
