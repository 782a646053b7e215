//! A base model that answers, with adapters beside it: what the server holds for chat.

use super::{BackendKind, EngineError, LoadEngineError, LoraSettings, NamedTensors, isa};
use crate::train::backend::cpu::backend::CpuBackend;
use crate::train::config::ModelConfig;
use crate::train::decoder::Decoder;
use crate::train::decoder::adapter::Adapter;
use crate::train::decoder::decode::KvCache;
use crate::train::weights::WeightSource;

/// A base model that answers, alone or with one of the adapters attached to it. The base is in
/// memory once, whatever the number of adapters.
pub struct Responder {
    decoder: Decoder<CpuBackend>,
}

/// An adapter on the device, ready to answer with.
pub struct AttachedAdapter(Adapter<CpuBackend>);

/// One text in progress: what came before is kept.
pub struct Session<'a> {
    decoder: &'a Decoder<CpuBackend>,
    adapter: Option<&'a AttachedAdapter>,
    cache: KvCache<CpuBackend>,
}

impl Responder {
    /// Loads a base model for answering.
    ///
    /// # Errors
    /// As [`load`]. What is for training only answers on the CPU: [`BackendKind::Candle`] with its
    /// 32-bit kernels, [`BackendKind::Cuda`] with the fastest.
    pub fn load(
        config: &serde_json::Value,
        weights: &dyn WeightSource,
        kind: BackendKind,
    ) -> Result<Self, LoadEngineError> {
        let kind = match kind {
            BackendKind::Candle => BackendKind::CpuF32,
            BackendKind::Cuda(_) => BackendKind::Cpu,
            of_the_cpu => of_the_cpu,
        };
        let config = ModelConfig::read(config)?;
        let backend = CpuBackend::new(isa(kind)?);
        Ok(Self { decoder: Decoder::load(backend, config, weights, false)? })
    }

    /// Longest text in tokens.
    pub fn context_length(&self) -> usize {
        self.decoder.config().context_length
    }

    /// How many tokens the model knows: the length of its logits.
    pub fn vocabulary(&self) -> usize {
        self.decoder.config().vocabulary
    }

    /// Puts an adapter beside the base.
    pub fn attach(
        &self,
        lora: &LoraSettings,
        tensors: &NamedTensors,
    ) -> Result<AttachedAdapter, EngineError> {
        Ok(AttachedAdapter(Adapter::from_named(&self.decoder, lora, tensors)?))
    }

    /// Begins a text.
    pub fn begin<'a>(
        &'a self,
        adapter: Option<&'a AttachedAdapter>,
    ) -> Result<Session<'a>, EngineError> {
        Ok(Session { decoder: &self.decoder, adapter, cache: self.decoder.new_cache()? })
    }

    /// Logits of every position of one sequence, `[tokens, vocabulary]` row-major.
    pub fn logits(
        &self,
        adapter: Option<&AttachedAdapter>,
        input_ids: &[u32],
    ) -> Result<Vec<f32>, EngineError> {
        self.decoder.logits(adapter.map(|adapter| &adapter.0), input_ids)
    }
}

impl Session<'_> {
    /// Appends tokens; logits of the position after them.
    pub fn extend(&mut self, input_ids: &[u32]) -> Result<Vec<f32>, EngineError> {
        let adapter = self.adapter.map(|adapter| &adapter.0);
        self.decoder.extend(adapter, &mut self.cache, input_ids)
    }
}
