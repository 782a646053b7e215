//! Loading a model for training, on the backend of a kind.

use candle_core::DType;

use super::training::TrainingEngine;
use super::{BackendKind, Engine, TOKENS_AT_ONCE, isa};
use crate::device::Device;
use crate::train::backend::candle::{self, CandleBackend};
use crate::train::backend::cpu::backend::CpuBackend;
use crate::train::device::{DeviceError, DeviceMemory, OpenDevice, memory};
use crate::train::model::config::ModelConfig;
use crate::train::model::error::LoadModelError;
use crate::train::model::lora::LoraSettings;
use crate::train::model::trainable::Trainable;
use crate::train::model::weights::WeightSource;

/// A backend whose device is open. The thread that opens it loads the engine and runs it: on a CUDA device each
/// thread has a stream of its own.
pub struct OpenBackend {
    kind: BackendKind,
    cuda: Option<OpenDevice>,
    pass_tokens: usize,
}

impl OpenBackend {
    /// Opens the device of `kind`.
    ///
    /// # Errors
    /// A CUDA device that cannot be used.
    pub fn open(kind: BackendKind) -> Result<Self, DeviceError> {
        let cuda = match kind {
            BackendKind::Cuda(number) => Some(OpenDevice::open(number)?),
            BackendKind::Cpu | BackendKind::CpuF32 | BackendKind::Candle => None,
        };
        Ok(Self { kind, cuda, pass_tokens: TOKENS_AT_ONCE })
    }

    /// Which backend.
    pub fn kind(&self) -> BackendKind {
        self.kind
    }

    /// The same with passes of at most so many tokens. A GPU computes large passes faster.
    pub fn with_pass_tokens(self, pass_tokens: usize) -> Self {
        Self { pass_tokens, ..self }
    }

    /// Free and total bytes of the memory where its tensors lie; `None` where they are unknown.
    ///
    /// # Errors
    /// The device's driver fails.
    pub fn memory(&self) -> Result<Option<DeviceMemory>, DeviceError> {
        match &self.cuda {
            Some(device) => device.memory(),
            None => Ok(memory::of_machine()),
        }
    }
}

/// Loads a base model with a fresh LoRA adapter, for training: [`load_for_training`] with
/// [`Trainable::Lora`].
pub fn load(
    config: &serde_json::Value,
    weights: &dyn WeightSource,
    lora: &LoraSettings,
    seed: u64,
    kind: BackendKind,
) -> Result<Box<dyn Engine>, LoadModelError> {
    load_for_training(config, weights, &Trainable::Lora(lora.clone()), seed, kind)
}

/// Loads a base model for training what `tuning` says.
///
/// # Errors
/// An unknown architecture; missing, extra or misshapen tensors, by name; layers that the model does
/// not have; a device that fails, or whose backend does not train the model's own weights
/// ([`Trainable::needs_weights`]).
pub fn load_for_training(
    config: &serde_json::Value,
    weights: &dyn WeightSource,
    tuning: &Trainable,
    seed: u64,
    kind: BackendKind,
) -> Result<Box<dyn Engine>, LoadModelError> {
    load_on(OpenBackend::open(kind)?, config, weights, tuning, seed)
}

/// The same on a backend that is open.
///
/// # Errors
/// As [`load_for_training`].
pub fn load_on(
    backend: OpenBackend,
    config: &serde_json::Value,
    weights: &dyn WeightSource,
    tuning: &Trainable,
    seed: u64,
) -> Result<Box<dyn Engine>, LoadModelError> {
    let config = ModelConfig::read(config)?;
    let OpenBackend { kind, cuda, pass_tokens } = backend;
    if let Some(device) = cuda {
        let backend = CandleBackend::new(device.candle().clone())
            .with_head_rows(candle::head_rows(pass_tokens, config.vocabulary));
        let engine = TrainingEngine::load(backend, config, weights, tuning, seed)?;
        return Ok(Box::new(engine.with_pass_tokens(pass_tokens)));
    }
    if kind == BackendKind::Candle {
        let backend = CandleBackend::new(candle_core::Device::Cpu);
        let engine = TrainingEngine::load(backend, config, weights, tuning, seed)?;
        return Ok(Box::new(engine.with_pass_tokens(pass_tokens)));
    }
    let backend = CpuBackend::new(isa(kind)?);
    let engine = TrainingEngine::load(backend, config, weights, tuning, seed)?;
    Ok(Box::new(engine.with_pass_tokens(pass_tokens)))
}

/// Loads a base model as [`load_for_training`] does, for candle on `device` with all weights in 32-bit floats. Jobs
/// train in bfloat16 on a CUDA device; this is what its rounding is compared with.
pub fn load_in_f32(
    config: &serde_json::Value,
    weights: &dyn WeightSource,
    tuning: &Trainable,
    seed: u64,
    device: Device,
) -> Result<Box<dyn Engine>, LoadModelError> {
    let config = ModelConfig::read(config)?;
    let device = match device {
        Device::Cpu => candle_core::Device::Cpu,
        Device::Cuda(number) => OpenDevice::open(number)?.candle().clone(),
    };
    let backend = CandleBackend::with_precision(device, DType::F32);
    Ok(Box::new(TrainingEngine::load(backend, config, weights, tuning, seed)?))
}
