//! Loading a model for training, on the backend of a kind.

use super::training::TrainingEngine;
use super::{BackendKind, Engine, isa};
use crate::train::backend::candle::CandleBackend;
use crate::train::backend::cpu::backend::CpuBackend;
use crate::train::device;
use crate::train::model::config::ModelConfig;
use crate::train::model::error::LoadModelError;
use crate::train::model::lora::LoraSettings;
use crate::train::model::trainable::Trainable;
use crate::train::model::weights::WeightSource;

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
