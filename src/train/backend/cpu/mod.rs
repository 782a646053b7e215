//! The CPU backend: fused kernels for each level of vector instructions, chosen at run time. [`backend`] implements
//! the backend's operations with the kernels of [`gemm`], [`layers`] and [`attention`].
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
