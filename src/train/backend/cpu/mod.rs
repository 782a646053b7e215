//! The CPU backend: fused kernels for each level of vector instructions, chosen at run time. [`backend`] implements
//! the backend's operations with the kernels of [`gemm`], [`layers`] and [`attention`].
//!
//! The only folder of hone that holds `unsafe`: each use states why it is sound.

pub(crate) mod attention;
pub mod backend;
pub(crate) mod buffer_pool;
pub(crate) mod gemm;
pub mod isa;
pub(crate) mod layers;
mod parallel;
pub mod peak;
pub(crate) mod vector;

#[cfg(test)]
mod tests;
