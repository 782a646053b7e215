//! Promises of answering.

pub mod answering;
