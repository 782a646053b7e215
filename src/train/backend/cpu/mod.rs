//! The fast backend: fused kernels for the CPU, chosen at run time from its vector instructions.
//!
//! The only folder of hone that holds `unsafe`: each use states why it is sound.

pub mod activation;
mod adamw;
pub mod attention;
pub mod backend;
pub mod cache;
pub mod isa;
pub mod linear;
pub mod loss;
pub mod matrix;
pub mod memory;
pub mod norm;
pub mod peak;
pub mod rope;
pub mod runs;
mod scratch;
pub mod tile;
mod turns;
pub mod vector;
pub mod weight;
mod words;

#[cfg(test)]
mod tests;
