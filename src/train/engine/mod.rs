//! The public face of the engine: a model on one device and what trains of it or beside it. The
//! trainer, the server and the golden tests all go through it.

use std::ops::Range;

pub use self::dpo::{Preference, PreferenceOutcome};
use super::backend::RowLoss;
use super::backend::candle::CandleBackend;
use super::backend::cpu::backend::CpuBackend;
use super::backend::cpu::isa::Isa;
use super::backend::{AdamWStep, BackendError};
use super::data::sequence::Sequence;
use super::device;
use super::model::config::ModelConfig;
use super::model::error::LoadModelError;
use super::model::flops::ModelFlops;
use super::model::lora::LoraSettings;
use super::model::tensors::{ModelTensor, NamedTensors};
use super::model::trainable::Trainable;
use super::model::weights::WeightSource;
use crate::device::Device;

pub mod dpo;
pub mod memory;
mod responder;
mod training;

pub use responder::{Advance, AttachedAdapter, PROMPT_CHUNK, Responder, Session, TextCache};
use training::TrainingEngine;

/// What computes.
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
    /// What trains on `device`.
    pub fn of(device: Device) -> Self {
        match device {
            Device::Cpu => Self::Cpu,
            Device::Cuda(number) => Self::Cuda(number),
        }
    }
}

/// Which part of which optimiser step a batch is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchPart {
    /// The step, from 1.
    pub step: u64,
    /// How many sequences (or preferences) of the step came before this batch. Dropout depends on
    /// step and place, so that it is the same however a step is cut into batches.
    pub first: usize,
    /// What the loss is the mean over, in the whole step: its loss-bearing tokens, or its
    /// preferences. Batches of a step add up exactly.
    pub total: u64,
}

impl BatchPart {
    /// A step in one batch.
    pub fn whole(step: u64, total: u64) -> Self {
        Self { step, first: 0, total }
    }
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

/// What an engine keeps of blocks in which nothing trains, so that they need not run again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrozenCache {
    /// Tokens that there is room for, if no text begins like another; zero where no block is frozen.
    pub room: u64,
    /// Tokens of the texts that the frozen blocks did not have to run over, so far.
    pub spared: u64,
}

/// A model on one device and what trains: a LoRA adapter beside it, or tensors of its own.
///
/// Gradients add up over [`Engine::accumulate`] and are spent by [`Engine::step`].
pub trait Engine: Send {
    /// Cuts items of one or more sequences into runs that the device takes in one pass each, of at
    /// most [`TOKENS_AT_ONCE`] tokens beside a beginning that they share, one item at least.
    fn cut(&self, items: &[&[&Sequence]]) -> Vec<Range<usize>>;

    /// Runs forward and backward over `batch` and adds the gradients of (sum of the losses) /
    /// `part.total` to what is there; the sums of each sequence.
    fn accumulate(
        &mut self,
        batch: &[&Sequence],
        part: BatchPart,
    ) -> Result<Vec<LossSums>, BackendError>;

    /// The same for preferences and their loss (Rafailov et al. 2023).
    fn accumulate_preferences(
        &mut self,
        batch: &[Preference<'_>],
        beta: f64,
        part: BatchPart,
    ) -> Result<Vec<PreferenceOutcome>, BackendError>;

    /// Runs forward only, without dropout; the sums of each sequence.
    fn evaluate(&mut self, batch: &[&Sequence]) -> Result<Vec<LossSums>, BackendError>;

    /// The same for preferences.
    fn evaluate_preferences(
        &mut self,
        batch: &[Preference<'_>],
        beta: f64,
    ) -> Result<Vec<PreferenceOutcome>, BackendError>;

    /// Log-probability of each sequence's loss-bearing tokens, in nats, under the model as it is now
    /// or, without `trained`, under the base alone.
    ///
    /// # Errors
    /// [`BackendError::BaseIsGone`] without `trained`, when the model's own weights have moved.
    fn log_probabilities(
        &mut self,
        batch: &[&Sequence],
        trained: bool,
    ) -> Result<Vec<f64>, BackendError>;

    /// Continues a text with the likeliest token each time, up to `most` tokens or one of `ends`,
    /// which is not part of the answer; with the model as it is now or, without `trained`, the base
    /// alone, as [`Engine::log_probabilities`].
    fn continue_greedily(
        &mut self,
        prompt: &[u32],
        most: usize,
        ends: &[u32],
        trained: bool,
    ) -> Result<Vec<u32>, BackendError>;

    /// Clips the gradients, moves what trains by one AdamW step, forgets the gradients, and
    /// returns their global norm before clipping (NaN or infinite when a gradient is: then nothing
    /// has moved).
    fn step(&mut self, step: &AdamWStep) -> Result<f64, BackendError>;

    /// The gradients that have added up.
    fn gradients(&self) -> Result<NamedTensors, BackendError>;

    /// The tensors that train.
    fn trained(&self) -> Result<NamedTensors, BackendError>;

    /// Replaces the tensors that train; keys and shapes must be those of [`Engine::trained`].
    fn set_trained(&mut self, tensors: &NamedTensors) -> Result<(), BackendError>;

    /// Adam's first and second moments, under the keys of [`Engine::trained`].
    fn moments(&self) -> Result<(NamedTensors, NamedTensors), BackendError>;

    /// Replaces both moments.
    fn set_moments(
        &mut self,
        first: &NamedTensors,
        second: &NamedTensors,
    ) -> Result<(), BackendError>;

    /// Lets the engine keep, in up to so many bytes of the host's memory, what the blocks below all
    /// that trains make of a text, so that they run over it once. Nothing is kept before. What is
    /// computed stays the same, to the last bit where the backend computes a row alike whatever
    /// stands beside it: the CPU's kernels do, candle does not promise it.
    fn keep_frozen(&mut self, bytes: u64);

    /// What it keeps of frozen blocks.
    fn frozen_use(&self) -> FrozenCache;

    /// Logits of every position of one sequence, `[tokens, vocabulary]` row-major.
    fn logits(&mut self, input_ids: &[u32]) -> Result<Vec<f32>, BackendError>;

    /// PEFT's names of the adapted modules in the order of the decoder
    /// (`model.layers.0.self_attn.q_proj` …), for `adapter_config.json`; none without LoRA.
    fn adapted_modules(&self) -> Vec<String>;

    /// Mean |ΔW| of each block's trained weights, by the block's index, where ΔW is what the adapter
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

    /// What computes, for messages.
    fn backend_name(&self) -> &'static str;

    /// Whether the base alone can be asked at any time: not where its own weights move.
    fn keeps_base(&self) -> bool;
}

/// Loads a base model with a fresh LoRA adapter, for training: [`load_tuned`] with
/// [`Trainable::Lora`].
pub fn load(
    config: &serde_json::Value,
    weights: &dyn WeightSource,
    lora: &LoraSettings,
    seed: u64,
    kind: BackendKind,
) -> Result<Box<dyn Engine>, LoadModelError> {
    load_tuned(config, weights, &Trainable::Lora(lora.clone()), seed, kind)
}

/// Loads a base model for training what `tuning` says.
///
/// # Errors
/// An unknown architecture; missing, extra or misshapen tensors, by name; layers that the model does
/// not have; a device that fails, or whose backend does not train the model's own weights
/// ([`Trainable::needs_weights`]).
pub fn load_tuned(
    config: &serde_json::Value,
    weights: &dyn WeightSource,
    tuning: &Trainable,
    seed: u64,
    kind: BackendKind,
) -> Result<Box<dyn Engine>, LoadModelError> {
    let config = ModelConfig::read(config)?;
    match kind {
        BackendKind::Candle => {
            let backend = CandleBackend::new(candle_core::Device::Cpu);
            Ok(Box::new(TrainingEngine::load(backend, config, weights, tuning, seed)?))
        }
        BackendKind::Cuda(number) => {
            let backend = CandleBackend::new(device::open(number)?);
            Ok(Box::new(TrainingEngine::load(backend, config, weights, tuning, seed)?))
        }
        BackendKind::Cpu | BackendKind::CpuF32 => {
            let backend = CpuBackend::new(isa(kind)?);
            Ok(Box::new(TrainingEngine::load(backend, config, weights, tuning, seed)?))
        }
    }
}

/// The level of instructions that `kind` and the environment ask for, of the CPU's kernels: also where
/// these compute what candle did, which is done in 32-bit floats on the CPU.
pub(super) fn isa(kind: BackendKind) -> Result<Isa, BackendError> {
    let chosen = Isa::choose();
    let isa = chosen.map_err(|reason| BackendError::Backend { backend: "cpu", reason })?;
    let is_f32 = matches!(kind, BackendKind::CpuF32 | BackendKind::Candle);
    Ok(if is_f32 { isa.for_f32() } else { isa })
}

/// Does `work`, which computes, on one of the threads that its tasks are shared out to. Handing a task to
/// these from outside wakes one of them and waits for it, which for the hundreds of tasks of a pass
/// costs more than many of them.
pub fn on_a_computing_thread<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    rayon::scope(|_| work())
}

/// In which precision `kind` multiplies with frozen weights, `bf16` or `f32`, where [`Responder`] computes
/// for it.
pub fn precision(kind: BackendKind) -> Result<&'static str, BackendError> {
    Ok(if isa(kind)? == Isa::Bf16 { "bf16" } else { "f32" })
}

/// Most tokens that run through the blocks at once, beside a beginning that sequences share; longer
/// batches go in several passes, whose gradients add up to the same.
pub const TOKENS_AT_ONCE: usize = 512;
