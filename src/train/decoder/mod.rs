//! The one decoder, driven by configuration: forward and backward written by hand over a
//! [`Backend`].
//!
//! [`load`] reads the weights, [`forward`] and [`backward`] run training, [`frozen_layer_cache`] caches the
//! output of frozen layers, [`decode`] continues sequences token by token.

pub mod adapter;
pub mod backward;
pub mod decode;
mod forward;
pub mod frozen_layer_cache;
mod layer_backward;
mod load;
mod memory_use;
mod names;
pub mod pack;
mod saved_activations;
pub mod shapes;
pub mod trainable_state;
pub mod trainable_tensors;

use std::ops::Range;

use super::backend::{Activation, AttentionShape, Backend, Norm, RopeTable};
use super::model::config::ModelConfig;
use super::model::modules::AdaptedModule;
use super::model::tensors::ModelTensor;
use adapter::LoraAdapter;
pub use load::{FileTensor, check as check_tensors, tensors_of};

/// One linear layer of a decoder layer.
struct Linear<B: Backend> {
    weight: B::Weight,
    /// Index of its LoRA pair in an adapter of this model.
    pair: usize,
    /// Index of its weight among the model's tensors.
    tensor: usize,
    /// That of its bias.
    bias_tensor: Option<usize>,
}

/// One norm.
struct NormLayer<B: Backend> {
    norm: Norm<B>,
    /// Index of its weight among the model's tensors; that of its bias, where it has one, comes next.
    tensor: usize,
}

/// Indexes of the tensors outside of the layers.
struct OuterTensors {
    embedding: usize,
    positions: Option<usize>,
    /// The embedding's when it is the head.
    head: usize,
}

/// The projections to queries, keys and values.
enum Qkv<B: Backend> {
    Separate([Linear<B>; 3]),
    Fused(Linear<B>, [Vec<Range<usize>>; 3]),
}

/// The layers of the MLP.
enum Mlp<B: Backend> {
    Gated { gate: Linear<B>, up: Linear<B>, down: Linear<B> },
    FusedGated { gate_up: Linear<B>, down: Linear<B> },
    Plain { up: Linear<B>, down: Linear<B> },
}

/// One decoder layer (transformer block).
struct DecoderLayer<B: Backend> {
    attention_norm: NormLayer<B>,
    qkv: Qkv<B>,
    qk_norms: Option<[NormLayer<B>; 2]>,
    /// Index into the decoder's tables; `None` without rotary positions.
    rope: Option<usize>,
    attention: AttentionShape,
    output: Linear<B>,
    mlp_norm: NormLayer<B>,
    mlp: Mlp<B>,
    post_norms: Option<[NormLayer<B>; 2]>,
}

/// A base model on a device.
pub struct Decoder<B: Backend> {
    backend: B,
    config: ModelConfig,
    embedding: B::Weight,
    positions: Option<B::Weight>,
    tables: Vec<RopeTable<B>>,
    layers: Vec<DecoderLayer<B>>,
    final_norm: NormLayer<B>,
    /// `None` when the embedding is the head.
    head: Option<B::Weight>,
    modules: Vec<AdaptedModule>,
    tensors: Vec<ModelTensor>,
    outer_tensors: OuterTensors,
}

impl<B: Backend> Decoder<B> {
    /// The model's configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The device.
    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// Every linear layer that can be adapted, in order; an adapter has a LoRA pair for each.
    pub fn modules(&self) -> &[AdaptedModule] {
        &self.modules
    }

    /// Every tensor of the model, in the order in which they are read.
    pub fn tensors(&self) -> &[ModelTensor] {
        &self.tensors
    }

    /// Parameters of the base model.
    pub fn parameters(&self) -> u64 {
        self.tensors.iter().map(|tensor| tensor.elements() as u64).sum()
    }

    /// The embedding of `adapter` where it has one, otherwise the model's own.
    fn embedding<'a>(&'a self, adapter: Option<&'a LoraAdapter<B>>) -> &'a B::Weight {
        adapter.and_then(|adapter| adapter.embedding.as_ref()).unwrap_or(&self.embedding)
    }

    /// The head of `adapter` where it has one, otherwise the model's own.
    fn head<'a>(&'a self, adapter: Option<&'a LoraAdapter<B>>) -> &'a B::Weight {
        let own = self.head.as_ref().unwrap_or(&self.embedding);
        adapter.and_then(|adapter| adapter.head.as_ref()).unwrap_or(own)
    }

    fn activation(&self) -> Activation {
        self.config.activation
    }
}
