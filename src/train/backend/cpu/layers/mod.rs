//! The layers of a decoder, forward and backward, and the optimiser's update.

pub mod activation;
pub mod adamw;
pub mod cross_entropy;
pub mod grouped_lora;
pub mod linear;
pub mod norm;
pub mod rope;
