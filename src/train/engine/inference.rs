//! Inference with a base model and its adapters, for the server.
//!
//! Sequences decode in batches: a step takes the next tokens of each, reads the base model once for all, and
//! returns for each the logits that it would get alone, bit for bit.

use super::{BackendKind, isa, on_compute_thread};
use crate::train::backend::BackendError;
use crate::train::backend::Matrices;
use crate::train::backend::cpu::attention::kv_cache::{CpuKvCache, PAGE_TOKENS};
use crate::train::backend::cpu::backend::CpuBackend;
use crate::train::backend::cpu::isa::Isa;
use crate::train::decoder::Decoder;
use crate::train::decoder::adapter::{LoraAdapter, PackedAdapter};
use crate::train::decoder::decode::SequenceStep;
use crate::train::model::config::ModelConfig;
use crate::train::model::error::LoadModelError;
use crate::train::model::lora::LoraSettings;
use crate::train::model::tensors::NamedTensors;
use crate::train::model::weights::WeightSource;

/// Most tokens of a sequence in a step: longer prompts are prefilled in several.
pub const PREFILL_CHUNK: usize = 512;

/// A base model for inference, alone or with one of its attached adapters. The base model is in memory once,
/// whatever the number of adapters.
pub struct InferenceEngine {
    decoder: Decoder<CpuBackend>,
}

/// An adapter on the device, packed for inference.
pub struct AttachedAdapter(PackedAdapter<CpuBackend>);

/// The KV cache of a sequence. Sequences with a common prefix share its pages.
pub struct SequenceCache(CpuKvCache);

/// The tokens of one sequence in a step.
pub struct DecodeStep<'a> {
    /// Its adapter; `None` for the base model.
    pub adapter: Option<&'a AttachedAdapter>,
    /// Keys and values of its earlier tokens.
    pub cache: &'a mut SequenceCache,
    /// Its next tokens, one at least.
    pub input_ids: &'a [u32],
    /// Number of tokens, counted from the last, whose logits are returned.
    pub wanted: usize,
}

/// One sequence that is decoded alone.
pub struct DecodeSession<'a> {
    engine: &'a InferenceEngine,
    adapter: Option<&'a AttachedAdapter>,
    cache: SequenceCache,
}

impl InferenceEngine {
    /// Loads a base model for inference.
    ///
    /// # Errors
    /// As [`load`](super::load). What is for training only answers on the CPU:
    /// [`BackendKind::Candle`] with its 32-bit kernels, [`BackendKind::Cuda`] with the fastest.
    pub fn load(
        config: &serde_json::Value,
        weights: &dyn WeightSource,
        kind: BackendKind,
    ) -> Result<Self, LoadModelError> {
        let kind = match kind {
            BackendKind::Candle => BackendKind::CpuF32,
            BackendKind::Cuda(_) => BackendKind::Cpu,
            of_the_cpu => of_the_cpu,
        };
        Self::load_on(config, weights, CpuBackend::new(isa(kind)?))
    }

    /// The same with weights in bfloat16, to which those that are not are rounded.
    ///
    /// # Errors
    /// As [`InferenceEngine::load`].
    pub fn load_rounded(
        config: &serde_json::Value,
        weights: &dyn WeightSource,
    ) -> Result<Self, LoadModelError> {
        Self::load_on(config, weights, CpuBackend::with_bf16_weights(isa(BackendKind::Cpu)?))
    }

    /// About how many bytes a base model will take, without reading its tensors.
    pub fn needed_bytes(config: &serde_json::Value, weights: &dyn WeightSource) -> u64 {
        let elements: u64 =
            weights.shapes().iter().map(|(_, shape)| shape.iter().product::<usize>() as u64).sum();
        let dtype = config.get("dtype").or_else(|| config.get("torch_dtype"));
        let is_half = dtype.and_then(serde_json::Value::as_str) == Some("bfloat16")
            || matches!(isa(BackendKind::Cpu), Ok(Isa::Bf16));
        elements * if is_half { 2 } else { 4 }
    }

    fn load_on(
        config: &serde_json::Value,
        weights: &dyn WeightSource,
        backend: CpuBackend,
    ) -> Result<Self, LoadModelError> {
        let config = ModelConfig::read(config)?;
        Ok(Self { decoder: Decoder::load(backend, config, weights, false)? })
    }

    /// Longest sequence in tokens.
    pub fn context_length(&self) -> usize {
        self.decoder.config().context_length
    }

    /// Logits of a row.
    pub fn vocabulary(&self) -> usize {
        self.decoder.config().vocabulary
    }

    /// The backend's name, for messages.
    pub fn backend_name(&self) -> &'static str {
        self.decoder.backend().name()
    }

    /// Bytes of the base model's weights.
    pub fn memory_use(&self) -> u64 {
        self.decoder.memory_use()
    }

    /// Bytes of all KV caches; shared pages count once.
    pub fn cached_bytes(&self) -> u64 {
        self.decoder.backend().cached_bytes()
    }

    /// Bytes of the KV cache of a sequence of so many tokens that shares no page.
    pub fn bytes_of_text(&self, tokens: usize) -> u64 {
        tokens.div_ceil(PAGE_TOKENS) as u64 * self.decoder.page_bytes()
    }

    /// Attaches an adapter to the base model.
    pub fn attach(
        &self,
        lora: &LoraSettings,
        tensors: &NamedTensors,
    ) -> Result<AttachedAdapter, BackendError> {
        let adapter = LoraAdapter::from_named(&self.decoder, lora, tensors)?;
        Ok(AttachedAdapter(PackedAdapter::new(&self.decoder, adapter)?))
    }

    /// An empty KV cache for a new sequence.
    pub fn new_cache(&self) -> Result<SequenceCache, BackendError> {
        Ok(SequenceCache(self.decoder.new_cache()?))
    }

    /// Decodes the next tokens of sequences in one step; returns the logits that each wants, `[wanted, vocabulary]`
    /// row-major. After an error the sequences are unchanged.
    ///
    /// # Errors
    /// Tokens that the model does not have, and sequences longer than its context.
    pub fn advance(&self, sequences: &mut [DecodeStep<'_>]) -> Result<Vec<Vec<f32>>, BackendError> {
        on_compute_thread(|| {
            let passes = sequences.iter_mut().map(|sequence| SequenceStep {
                adapter: sequence.adapter.map(|adapter| &adapter.0),
                cache: &mut sequence.cache.0,
                ids: sequence.input_ids,
                wanted: sequence.wanted,
            });
            self.decoder.step(passes.collect())
        })
    }

    /// Starts a sequence that is decoded alone.
    pub fn begin<'a>(
        &'a self,
        adapter: Option<&'a AttachedAdapter>,
    ) -> Result<DecodeSession<'a>, BackendError> {
        Ok(DecodeSession { engine: self, adapter, cache: self.new_cache()? })
    }

    /// Logits of every position of one sequence, `[tokens, vocabulary]` row-major.
    pub fn logits(
        &self,
        adapter: Option<&AttachedAdapter>,
        input_ids: &[u32],
    ) -> Result<Vec<f32>, BackendError> {
        let mut cache = self.new_cache()?;
        let mut logits = Vec::new();
        for input_ids in input_ids.chunks(PREFILL_CHUNK) {
            let wanted = input_ids.len();
            let sequence = DecodeStep { adapter, cache: &mut cache, input_ids, wanted };
            logits.extend(self.advance(&mut [sequence])?.swap_remove(0));
        }
        Ok(logits)
    }
}

impl AttachedAdapter {
    /// Bytes of memory that it uses.
    pub fn memory_use(&self) -> u64 {
        self.0.memory_use()
    }
}

impl SequenceCache {
    /// Cached tokens.
    pub fn length(&self) -> usize {
        self.0.length()
    }

    /// The first `tokens` tokens, for another sequence with this prefix; the pages are shared.
    ///
    /// # Panics
    /// When the cache is shorter.
    pub fn beginning(&self, tokens: usize) -> SequenceCache {
        SequenceCache(self.0.prefix(tokens))
    }
}

impl DecodeSession<'_> {
    /// Appends tokens; returns the logits of the last position.
    pub fn extend(&mut self, input_ids: &[u32]) -> Result<Vec<f32>, BackendError> {
        let Self { engine, adapter, cache } = self;
        let mut logits = Vec::new();
        for input_ids in input_ids.chunks(PREFILL_CHUNK) {
            let sequence = DecodeStep { adapter: *adapter, cache, input_ids, wanted: 1 };
            logits = engine.advance(&mut [sequence])?.swap_remove(0);
        }
        if logits.is_empty() {
            return Err(BackendError::Sequence("there are no tokens to read".to_owned()));
        }
        Ok(logits)
    }
}
