//! The engine: a model on one device with its trainable parameters. The trainer, the server and the golden tests
//! use it.

use std::ops::Range;

pub use self::dpo::{PreferencePair, PreferenceRewards};
pub use self::load::{OpenBackend, load, load_for_training, load_in_f32, load_on};
use super::backend::RowLoss;
use super::backend::cpu::isa::Isa;
use super::backend::{AdamWStep, BackendError};
use super::data::sequence::Sequence;
use super::model::error::LoadModelError;
use super::model::flops::ModelFlops;
use super::model::tensors::{ModelTensor, NamedTensors};
use super::model::weights::WeightSource;
use crate::device::Device;

pub mod dpo;
mod inference;
mod load;
pub mod memory;
mod training;

pub use inference::{
    AttachedAdapter, DecodeSession, DecodeStep, InferenceEngine, PREFILL_CHUNK, SequenceCache,
};

/// Which backend computes, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackendKind {
    /// The fast kernels, in the best precision that the CPU is fast in.
    Cpu,
    /// The fast kernels in 32-bit floats.
    CpuF32,
    /// Plain candle operations on the CPU, in 32-bit floats.
    Candle,
    /// Candle's operations on the CUDA device of this number, frozen weights in bfloat16.
    Cuda(usize),
}

impl BackendKind {
    /// The backend that trains on `device`.
    pub fn of(device: Device) -> Self {
        match device {
            Device::Cpu => Self::Cpu,
            Device::Cuda(number) => Self::Cuda(number),
        }
    }

    /// Where its tensors lie.
    pub fn device(self) -> Device {
        match self {
            Self::Cuda(number) => Device::Cuda(number),
            Self::Cpu | Self::CpuF32 | Self::Candle => Device::Cpu,
        }
    }
}

/// The place of a micro-batch in its optimiser step, for gradient accumulation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MicroBatch {
    /// The step, from 1.
    pub step: u64,
    /// Number of sequences (or preferences) of the step before this micro-batch. Dropout depends on the step and
    /// this number, so that it is the same however a step is split.
    pub first: usize,
    /// Number of supervised tokens or preferences of the whole step, over which the loss is the mean. The
    /// micro-batches of a step add up exactly.
    pub total: u64,
}

impl MicroBatch {
    /// A step in one micro-batch.
    pub fn whole(step: u64, total: u64) -> Self {
        Self { step, first: 0, total }
    }
}

/// Sums of loss statistics over supervised tokens.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct LossSums {
    /// Sum of the cross entropies, in nats.
    pub loss: f64,
    /// Number of supervised tokens.
    pub tokens: u64,
    /// How many of them the model ranks first.
    pub correct: u64,
}

impl LossSums {
    /// All of `parts` together.
    pub fn total(parts: &[LossSums]) -> Self {
        let mut total = Self::default();
        for part in parts {
            total.loss += part.loss;
            total.tokens += part.tokens;
            total.correct += part.correct;
        }
        total
    }

    /// Of one sequence's rows.
    fn of(rows: &[RowLoss]) -> Self {
        Self {
            loss: rows.iter().map(|row| f64::from(row.loss)).sum(),
            tokens: rows.len() as u64,
            correct: rows.iter().filter(|row| row.correct).count() as u64,
        }
    }
}

/// The frozen layer cache: outputs of layers in which nothing trains, so that they need not run again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrozenCache {
    /// Capacity in tokens, if no sequences share a prefix; zero where no layer is frozen.
    pub capacity: u64,
    /// Tokens of sequences that were found in the cache so far.
    pub hit_tokens: u64,
}

/// A model on one device with its trainable parameters: a LoRA adapter, or tensors of its own.
///
/// Gradients add up over [`Engine::accumulate`] and are spent by [`Engine::step`].
pub trait Engine: Send {
    /// Splits items of one or more sequences into micro-batches that the device computes in one pass each: of at
    /// most as many tokens as a pass has ([`OpenBackend::with_pass_tokens`]) beside a shared prefix, and of at
    /// least one item.
    fn split_into_micro_batches(&self, items: &[&[&Sequence]]) -> Vec<Range<usize>>;

    /// Runs forward and backward over `batch` and adds the gradients of (sum of the losses) /
    /// `part.total` to what is there; the sums of each sequence.
    fn accumulate(
        &mut self,
        batch: &[&Sequence],
        part: MicroBatch,
    ) -> Result<Vec<LossSums>, BackendError>;

    /// The same for preferences and their loss (Rafailov et al. 2023).
    fn accumulate_preferences(
        &mut self,
        batch: &[PreferencePair<'_>],
        beta: f64,
        part: MicroBatch,
    ) -> Result<Vec<PreferenceRewards>, BackendError>;

    /// Runs forward only, without dropout; the sums of each sequence.
    fn evaluate(&mut self, batch: &[&Sequence]) -> Result<Vec<LossSums>, BackendError>;

    /// The same for preferences.
    fn evaluate_preferences(
        &mut self,
        batch: &[PreferencePair<'_>],
        beta: f64,
    ) -> Result<Vec<PreferenceRewards>, BackendError>;

    /// Log-probability of each sequence's supervised tokens, in nats, under the model as trained so far or,
    /// without `as_trained`, under the base model.
    ///
    /// # Errors
    /// [`BackendError::BaseIsGone`] without `as_trained`, when the model's own weights have been trained.
    fn log_probabilities(
        &mut self,
        batch: &[&Sequence],
        as_trained: bool,
    ) -> Result<Vec<f64>, BackendError>;

    /// Greedy decoding of `prompt`, up to `max_tokens` tokens or one of `stop_tokens`, which is not part of the
    /// answer; with the model as trained so far or the base model, as [`Engine::log_probabilities`].
    fn generate_greedily(
        &mut self,
        prompt: &[u32],
        max_tokens: usize,
        stop_tokens: &[u32],
        as_trained: bool,
    ) -> Result<Vec<u32>, BackendError>;

    /// Clips the gradients, updates the trainable parameters by one AdamW step, resets the gradients, and returns
    /// their global norm before clipping (NaN or infinite when a gradient is: then nothing is updated).
    fn step(&mut self, step: &AdamWStep) -> Result<f64, BackendError>;

    /// The accumulated gradients.
    fn gradients(&self) -> Result<NamedTensors, BackendError>;

    /// The tensors that train.
    fn trainable_tensors(&self) -> Result<NamedTensors, BackendError>;

    /// Replaces the tensors that train; keys and shapes must be those of [`Engine::trainable_tensors`].
    fn set_trainable_tensors(&mut self, tensors: &NamedTensors) -> Result<(), BackendError>;

    /// Adam's first and second moments, under the keys of [`Engine::trainable_tensors`].
    fn moments(&self) -> Result<(NamedTensors, NamedTensors), BackendError>;

    /// Replaces both moments.
    fn set_moments(
        &mut self,
        first: &NamedTensors,
        second: &NamedTensors,
    ) -> Result<(), BackendError>;

    /// Sets how many bytes of host memory the frozen layer cache may use, so that the layers below all that trains
    /// run over a sequence once. Without a call nothing is cached. Results stay the same, to the last bit on the
    /// CPU, whose kernels compute a row independently of the others; candle does not promise that.
    fn set_frozen_cache_budget(&mut self, bytes: u64);

    /// Capacity and hits of the frozen layer cache.
    fn frozen_cache(&self) -> FrozenCache;

    /// Logits of every position of one sequence, `[tokens, vocabulary]` row-major.
    fn logits(&mut self, input_ids: &[u32]) -> Result<Vec<f32>, BackendError>;

    /// PEFT's names of the adapted modules in the order of the decoder
    /// (`model.layers.0.self_attn.q_proj` …), for `adapter_config.json`; none without LoRA.
    fn adapted_modules(&self) -> Vec<String>;

    /// Mean |ΔW| of each layer's trained weights, by the layer's index, where ΔW is what the adapter
    /// adds to a weight (scale · B · A), or how far a weight is from what `base` has, which is read
    /// again. Blocks in which nothing trains are left out.
    fn mean_change_by_layer(
        &self,
        base: &dyn WeightSource,
    ) -> Result<Vec<(u32, f64)>, LoadModelError>;

    /// Every tensor of the model, whether it trains or not.
    fn tensors(&self) -> &[ModelTensor];

    /// Trainable and total parameters.
    fn parameter_counts(&self) -> (u64, u64);

    /// The arithmetic of its steps.
    fn cost(&self) -> ModelFlops;

    /// The backend's name, for messages.
    fn backend_name(&self) -> &'static str;

    /// Whether the base model is available at any time: not where its own weights train.
    fn has_base(&self) -> bool;
}

/// The level of CPU instructions for `kind` and the environment. [`BackendKind::Candle`] is f32 on the CPU, so the
/// kernels that compute for it are f32 too.
pub(super) fn isa(kind: BackendKind) -> Result<Isa, BackendError> {
    let chosen = Isa::choose();
    let isa = chosen.map_err(|reason| BackendError::Backend { backend: "cpu", reason })?;
    let is_f32 = matches!(kind, BackendKind::CpuF32 | BackendKind::Candle);
    Ok(if is_f32 { isa.for_f32() } else { isa })
}

/// Runs `work` on one of the threads that compute its parallel tasks. Starting a task from outside of them wakes a
/// thread and waits for it, which for the hundreds of tasks of a step costs more than many of the tasks.
pub fn on_compute_thread<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    rayon::scope(|_| work())
}

/// The precision in which `kind` multiplies with frozen weights, `bf16` or `f32`, where [`InferenceEngine`] computes
/// for it.
pub fn precision(kind: BackendKind) -> Result<&'static str, BackendError> {
    Ok(if isa(kind)? == Isa::Bf16 { "bf16" } else { "f32" })
}

/// Most tokens of a micro-batch, beside a shared prefix, where nothing else is asked for. Longer batches run in
/// several passes, whose gradients add up to the same.
pub const TOKENS_AT_ONCE: usize = 512;
