//! The public face of the engine: a base model with a LoRA adapter on one device. The trainer,
//! the server and the golden tests all go through it.

use std::collections::BTreeMap;

/// What can go wrong while the engine computes.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The device failed.
    #[error("the {backend} backend failed: {reason}")]
    Backend {
        /// Which backend.
        backend: &'static str,
        /// Why.
        reason: String,
    },
    /// Tensors that do not fit this model.
    #[error("the adapter does not fit the model: {0}")]
    Adapter(String),
    /// A sequence that the model cannot take.
    #[error("{0}")]
    Sequence(String),
}

/// A LoRA adapter's shape.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraSettings {
    /// Rank r.
    pub rank: usize,
    /// Alpha: the adapter's output is scaled by alpha / rank.
    pub alpha: f64,
}

/// One tokenised example.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sequence {
    /// Token ids.
    pub input_ids: Vec<u32>,
    /// `loss_mask[i]` says whether `input_ids[i]` is a target: predicted from the tokens before it,
    /// and counted. As long as `input_ids`; entry 0 never counts, nothing stands before it.
    pub loss_mask: Vec<bool>,
}

/// Sums over loss-bearing tokens.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct LossSums {
    /// Sum of the cross entropies, in nats.
    pub loss: f64,
    /// Number of loss-bearing tokens.
    pub tokens: u64,
    /// How many of them the model ranks first.
    pub correct: u64,
}

/// Named tensors of an adapter or of its moments, under the keys of PEFT's
/// `adapter_model.safetensors`; shape and row-major values.
pub type NamedTensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// One AdamW step (Loshchilov & Hutter 2019, with bias correction, as `torch.optim.AdamW`).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWStep {
    /// Learning rate of this step.
    pub learning_rate: f64,
    /// First moment's decay.
    pub beta1: f64,
    /// Second moment's decay.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Gradients are scaled by min(1, clip / (norm + 1e-6)), over all adapter tensors together.
    pub clip: f64,
    /// Number of this step, from 1, for the bias correction.
    pub step: u64,
}

/// A base model with a LoRA adapter on one device.
///
/// Gradients add up over [`Engine::accumulate`] and are spent by [`Engine::step`].
pub trait Engine: Send {
    /// Runs forward and backward over `batch` and adds the gradients of (sum of the losses) /
    /// `loss_tokens` to what is there. `loss_tokens` is the number of loss-bearing tokens of the
    /// whole optimiser step, so that micro-batches add up exactly.
    fn accumulate(
        &mut self,
        batch: &[&Sequence],
        loss_tokens: u64,
    ) -> Result<LossSums, EngineError>;

    /// Runs forward only and sums the losses.
    fn evaluate(&mut self, batch: &[&Sequence]) -> Result<LossSums, EngineError>;

    /// Clips the gradients, moves the adapter by one AdamW step, forgets the gradients, and
    /// returns their global norm before clipping (NaN or infinite when a gradient is: then nothing
    /// has moved).
    fn step(&mut self, step: &AdamWStep) -> Result<f64, EngineError>;

    /// The gradients that have added up.
    fn gradients(&self) -> Result<NamedTensors, EngineError>;

    /// The adapter's tensors.
    fn adapter(&self) -> Result<NamedTensors, EngineError>;

    /// Replaces the adapter's tensors; keys and shapes must be those of [`Engine::adapter`].
    fn set_adapter(&mut self, tensors: &NamedTensors) -> Result<(), EngineError>;

    /// Adam's first and second moments, under the adapter's keys.
    fn moments(&self) -> Result<(NamedTensors, NamedTensors), EngineError>;

    /// Replaces both moments.
    fn set_moments(
        &mut self,
        first: &NamedTensors,
        second: &NamedTensors,
    ) -> Result<(), EngineError>;

    /// Logits of every position of one sequence, `[tokens, vocabulary]` row-major.
    fn logits(&mut self, input_ids: &[u32]) -> Result<Vec<f32>, EngineError>;

    /// PEFT's names of the adapted modules in the order of the decoder
    /// (`model.layers.0.self_attn.q_proj` …), for `adapter_config.json`.
    fn adapted_modules(&self) -> Vec<String>;

    /// Trainable and total parameters.
    fn parameter_counts(&self) -> (u64, u64);
}
