//! Training data: examples of a file to token sequences with loss masks.

mod control_text;
pub mod conversation;
pub mod example;
pub mod sequence;
pub mod tokenize;
