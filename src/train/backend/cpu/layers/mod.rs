//! Kernels of the decoder's layers, forward and backward, and of the optimiser.

pub mod activation;
pub mod adamw;
pub mod cross_entropy;
pub mod grouped_lora;
pub mod linear;
pub mod norm;
pub mod rope;
