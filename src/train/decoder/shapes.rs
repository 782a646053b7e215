//! Shapes of a model's matrices and activations, known from its configuration before any tensor is read.

use super::load::linears;
use super::names;
use crate::train::model::config::ModelConfig;
use crate::train::model::modules::AdaptedModule;
use crate::train::model::tensors::{ModelPart, ModelTensor};

/// A frozen matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MatrixShape {
    /// Rows.
    pub outputs: usize,
    /// Columns.
    pub inputs: usize,
    /// Whether training runs backward through it.
    pub backward: bool,
}

impl MatrixShape {
    /// Number of elements.
    pub fn elements(&self) -> u64 {
        self.outputs as u64 * self.inputs as u64
    }
}

/// Every layer that can be adapted, in the order of [`super::Decoder::modules`].
pub fn modules(config: &ModelConfig) -> Vec<AdaptedModule> {
    let mut modules = Vec::new();
    for layer in 0..config.layers {
        for linear in linears(&names::layer(config, layer)) {
            modules.push(AdaptedModule {
                module: linear.module.clone(),
                layer: layer as u32,
                outputs: linear.outputs,
                inputs: linear.inputs,
            });
        }
    }
    modules
}

/// The tensors among which a run chooses those that train: every matrix, and the final norm. A model whose embedding is its head has no tensor for the head.
pub fn tensors(config: &ModelConfig) -> Vec<ModelTensor> {
    let outer = names::outer(config.family);
    let hidden = config.hidden;
    let matrix = |name: &str, part: ModelPart, rows: usize| {
        ModelTensor::matrix(format!("{name}.weight"), part, rows, hidden)
    };
    let mut tensors = vec![matrix(outer.embedding, ModelPart::Embedding, config.vocabulary)];
    if let Some(positions) = outer.positions {
        tensors.push(matrix(positions, ModelPart::Positions, config.context_length));
    }
    for AdaptedModule { module, layer, outputs, inputs } in modules(config) {
        let name = format!("{module}.weight");
        tensors.push(ModelTensor::matrix(name, ModelPart::Block(layer), outputs, inputs));
    }
    let norm = format!("{}.weight", outer.final_norm);
    tensors.push(ModelTensor::row(norm, ModelPart::FinalNorm, hidden));
    if !config.tied {
        tensors.push(matrix(outer.head, ModelPart::Head, config.vocabulary));
    }
    tensors
}

/// Every frozen matrix, in the order in which they are read.
pub fn matrices(config: &ModelConfig) -> Vec<MatrixShape> {
    let (vocabulary, hidden) = (config.vocabulary, config.hidden);
    let of_tokens = |backward: bool| MatrixShape { outputs: vocabulary, inputs: hidden, backward };
    let mut matrices = vec![of_tokens(config.tied)];
    if config.learned_positions {
        let outputs = config.context_length;
        matrices.push(MatrixShape { outputs, inputs: hidden, backward: false });
    }
    for module in modules(config) {
        let AdaptedModule { outputs, inputs, .. } = module;
        matrices.push(MatrixShape { outputs, inputs, backward: true });
    }
    if !config.tied {
        matrices.push(of_tokens(true));
    }
    matrices
}

/// Floats of the tables of rotary positions.
pub fn position_floats(config: &ModelConfig) -> u64 {
    let mut known = Vec::new();
    for rope in &config.ropes {
        if !known.contains(&rope) {
            known.push(rope);
        }
    }
    let pairs: usize = known.iter().map(|rope| rope.frequencies.len()).sum();
    2 * (config.context_length * pairs) as u64
}

/// Floats that a decoder layer saves of each token for its backward pass
/// ([`super::saved_activations::SavedActivations`]), with `inner` floats of x · aᵀ.
pub fn saved_floats(config: &ModelConfig, inner: usize) -> u64 {
    let query_width = config.heads * config.head_dim;
    let key_width = config.kv_heads * config.head_dim;
    let mut floats = config.hidden + query_width + 2 * key_width;
    floats += query_width + config.heads;
    if config.qk_norm {
        floats += query_width + key_width;
    }
    if !config.parallel_residual {
        floats += config.hidden;
    }
    if config.has_post_norms() {
        floats += 2 * config.hidden;
    }
    floats += if config.is_gated() { 2 } else { 1 } * config.intermediate;
    (floats + inner) as u64
}

/// Floats of each token that one decoder layer works with beside its saved activations: in the backward pass
/// through the MLP, or through attention.
pub fn working_floats(config: &ModelConfig) -> u64 {
    let queries = config.heads * config.head_dim;
    let keys = config.kv_heads * config.head_dim;
    // The gradients of output and input, the norm computed again and its gradient, the activation and its
    // gradient.
    let mlp = 4 * config.hidden + 2 * config.intermediate;
    // Gradients, those of keys and values for each query head, and the packed operands of attention.
    let attending = 3 * config.hidden + 7 * queries + 5 * keys;
    mlp.max(attending) as u64
}
