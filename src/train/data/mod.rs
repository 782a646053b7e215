//! From lines of a data file to sequences of tokens with their loss mask.

pub mod sequence;
pub mod tokenize;
