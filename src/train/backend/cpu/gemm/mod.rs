//! Matrix products (GEMM). [`packed_element`] packs operands, [`packed_matrix`] holds whole packed matrices,
//! [`matmul`] multiplies panels of them, and [`tile`] has the micro-kernels for each level of instructions.

pub mod matmul;
pub mod packed_element;
pub mod packed_matrix;
pub mod tile;
pub mod weight;
