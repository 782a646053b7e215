//! Loading a model for training, on the backend of a kind.

use super::training::TrainingEngine;
use super::{BackendKind, Engine, isa};
use crate::train::backend::candle::CandleBackend;
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
        Ok(Self { kind, cuda })
    }

    /// Which backend.
    pub fn kind(&self) -> BackendKind {
        self.kind
    }

    /// Bytes that are free where its tensors lie; `None` where they are unknown.
    ///
    /// # Errors
    /// The device's driver fails.
    pub fn free_memory(&self) -> Result<Option<u64>, DeviceError> {
        match &self.cuda {
            Some(device) => Ok(device.memory()?.map(|DeviceMemory { free, .. }| free)),
            None => Ok(memory::available()),
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
    let OpenBackend { kind, cuda } = backend;
    if let Some(device) = cuda {
        let backend = CandleBackend::new(device.candle().clone());
        return Ok(Box::new(TrainingEngine::load(backend, config, weights, tuning, seed)?));
    }
    if kind == BackendKind::Candle {
        let backend = CandleBackend::new(candle_core::Device::Cpu);
        return Ok(Box::new(TrainingEngine::load(backend, config, weights, tuning, seed)?));
    }
    let backend = CpuBackend::new(isa(kind)?);
    Ok(Box::new(TrainingEngine::load(backend, config, weights, tuning, seed)?))
}
