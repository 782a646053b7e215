//! The one decoder, driven by configuration: forward and backward written by hand over a
//! [`Backend`].
//!
//! [`load`] reads the weights, [`forward`] and [`backward`] run training, [`decode`] continues a
//! text token by token.

pub mod adapter;
pub mod backward;
pub mod decode;
mod forward;
mod load;
mod names;
pub mod pack;
mod saved;
pub mod size;

use std::ops::Range;

use super::backend::{AttentionShape, Backend, Norm, RopeTable};
use super::config::{Activation, ModelConfig};

/// One linear layer of a block.
struct Linear<B: Backend> {
    weight: B::Weight,
    /// Index of its LoRA pair in an adapter of this model.
    pair: usize,
}

/// How queries, keys and values are made.
enum Qkv<B: Backend> {
    Separate([Linear<B>; 3]),
    Fused(Linear<B>, [Vec<Range<usize>>; 3]),
}

/// How the MLP is made.
enum Mlp<B: Backend> {
    Gated { gate: Linear<B>, up: Linear<B>, down: Linear<B> },
    FusedGated { gate_up: Linear<B>, down: Linear<B> },
    Plain { up: Linear<B>, down: Linear<B> },
}

/// One block.
struct Block<B: Backend> {
    attention_norm: Norm<B>,
    qkv: Qkv<B>,
    qk_norms: Option<[Norm<B>; 2]>,
    /// Index into the decoder's tables; `None` without rotary positions.
    rope: Option<usize>,
    attention: AttentionShape,
    output: Linear<B>,
    mlp_norm: Norm<B>,
    mlp: Mlp<B>,
    post_norms: Option<[Norm<B>; 2]>,
}

/// A linear layer that an adapter adapts: its module path and shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdaptedModule {
    /// Hugging Face's path, such as `model.layers.0.self_attn.q_proj`.
    pub module: String,
    /// Index of its block.
    pub layer: u32,
    /// Width of the layer's output.
    pub outputs: usize,
    /// Width of the layer's input.
    pub inputs: usize,
}

impl AdaptedModule {
    /// The last part of its path, such as `q_proj`.
    pub fn name(&self) -> &str {
        self.module.rsplit('.').next().unwrap_or(&self.module)
    }
}

/// A base model on a device.
pub struct Decoder<B: Backend> {
    backend: B,
    config: ModelConfig,
    embedding: B::Weight,
    positions: Option<B::Weight>,
    tables: Vec<RopeTable<B>>,
    blocks: Vec<Block<B>>,
    final_norm: Norm<B>,
    /// `None` when the embedding is the head.
    head: Option<B::Weight>,
    modules: Vec<AdaptedModule>,
    parameters: u64,
}

impl<B: Backend> Decoder<B> {
    /// What the model is.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The device.
    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// Every layer that can be adapted, in the order of the blocks; an adapter has a pair for each.
    pub fn modules(&self) -> &[AdaptedModule] {
        &self.modules
    }

    /// Parameters of the base model.
    pub fn parameters(&self) -> u64 {
        self.parameters
    }

    fn head(&self) -> &B::Weight {
        self.head.as_ref().unwrap_or(&self.embedding)
    }

    fn curve(&self) -> Activation {
        self.config.activation
    }
}
