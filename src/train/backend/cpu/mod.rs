//! The fast backend: fused kernels for the CPU, chosen at run time from its vector instructions.
//!
//! The only folder of hone that holds `unsafe`: each use states why it is sound.

pub mod attention;
pub mod backend;
pub mod buffer_pool;
pub mod gemm;
pub mod isa;
pub mod layers;
mod parallel;
pub mod peak;
pub mod vector;

#[cfg(test)]
mod tests;
