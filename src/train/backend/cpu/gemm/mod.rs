//! Products of matrices: packed operands, tiles of vector instructions, work that threads share.

pub mod elements;
pub mod packed;
pub mod scratch;
pub mod tile;
pub mod weight;
