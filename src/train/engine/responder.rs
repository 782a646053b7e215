//! A base model that answers, with adapters beside it: what the server holds for chat.
//!
//! Texts advance together: a pass takes the next tokens of each, reads the base once for all, and
//! gives each the logits that it would have got alone, bit for bit.

use super::{BackendKind, isa, on_a_computing_thread};
use crate::train::backend::BackendError;
use crate::train::backend::Matrices;
use crate::train::backend::cpu::attention::kv_cache::{CpuKvCache, PAGE_TOKENS};
use crate::train::backend::cpu::backend::CpuBackend;
use crate::train::backend::cpu::isa::Isa;
use crate::train::decoder::Decoder;
use crate::train::decoder::adapter::{Adapter, ReadyAdapter};
use crate::train::decoder::decode::TextPass;
use crate::train::model::config::ModelConfig;
use crate::train::model::error::LoadModelError;
use crate::train::model::lora::LoraSettings;
use crate::train::model::tensors::NamedTensors;
use crate::train::model::weights::WeightSource;

/// Most tokens of a text that a pass should take: longer prompts go in several.
pub const PROMPT_CHUNK: usize = 512;

/// A base model that answers, alone or with one of the adapters attached to it. The base is in
/// memory once, whatever the number of adapters.
pub struct Responder {
    decoder: Decoder<CpuBackend>,
}

/// An adapter on the device, ready to answer with.
pub struct AttachedAdapter(ReadyAdapter<CpuBackend>);

/// Keys and values of a text so far. Texts that begin alike share what they hold of it.
pub struct TextCache(CpuKvCache);

/// A text's part in a pass.
pub struct Advance<'a> {
    /// What is beside the base for it.
    pub adapter: Option<&'a AttachedAdapter>,
    /// What came before.
    pub cache: &'a mut TextCache,
    /// Its next tokens, one at least.
    pub input_ids: &'a [u32],
    /// How many of them, counted from the last, the logits are wanted of.
    pub wanted: usize,
}

/// One text in progress, alone.
pub struct Session<'a> {
    responder: &'a Responder,
    adapter: Option<&'a AttachedAdapter>,
    cache: TextCache,
}

impl Responder {
    /// Loads a base model for answering.
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
    /// As [`Responder::load`].
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

    /// Longest text in tokens.
    pub fn context_length(&self) -> usize {
        self.decoder.config().context_length
    }

    /// Logits of a row.
    pub fn vocabulary(&self) -> usize {
        self.decoder.config().vocabulary
    }

    /// What computes, for messages.
    pub fn backend_name(&self) -> &'static str {
        self.decoder.backend().name()
    }

    /// Bytes of the base model's weights.
    pub fn held_bytes(&self) -> u64 {
        self.decoder.held_bytes()
    }

    /// Bytes of all texts' keys and values that are there, shared ones once.
    pub fn cached_bytes(&self) -> u64 {
        self.decoder.backend().cached_bytes()
    }

    /// Bytes of the keys and values of a text of so many tokens that shares none.
    pub fn bytes_of_text(&self, tokens: usize) -> u64 {
        tokens.div_ceil(PAGE_TOKENS) as u64 * self.decoder.page_bytes()
    }

    /// Puts an adapter beside the base.
    pub fn attach(
        &self,
        lora: &LoraSettings,
        tensors: &NamedTensors,
    ) -> Result<AttachedAdapter, BackendError> {
        let adapter = Adapter::from_named(&self.decoder, lora, tensors)?;
        Ok(AttachedAdapter(ReadyAdapter::new(&self.decoder, adapter)?))
    }

    /// The cache of a text that begins.
    pub fn new_cache(&self) -> Result<TextCache, BackendError> {
        Ok(TextCache(self.decoder.new_cache()?))
    }

    /// Takes texts on by their next tokens, in one pass; the logits that each wants, `[wanted,
    /// vocabulary]` row-major. The texts are as they were after an error.
    ///
    /// # Errors
    /// Tokens that the model does not have, and texts longer than its context.
    pub fn advance(&self, texts: &mut [Advance<'_>]) -> Result<Vec<Vec<f32>>, BackendError> {
        on_a_computing_thread(|| {
            let passes = texts.iter_mut().map(|text| TextPass {
                adapter: text.adapter.map(|adapter| &adapter.0),
                cache: &mut text.cache.0,
                ids: text.input_ids,
                wanted: text.wanted,
            });
            self.decoder.advance(passes.collect())
        })
    }

    /// Begins a text alone.
    pub fn begin<'a>(
        &'a self,
        adapter: Option<&'a AttachedAdapter>,
    ) -> Result<Session<'a>, BackendError> {
        Ok(Session { responder: self, adapter, cache: self.new_cache()? })
    }

    /// Logits of every position of one sequence, `[tokens, vocabulary]` row-major.
    pub fn logits(
        &self,
        adapter: Option<&AttachedAdapter>,
        input_ids: &[u32],
    ) -> Result<Vec<f32>, BackendError> {
        let mut cache = self.new_cache()?;
        let mut logits = Vec::new();
        for input_ids in input_ids.chunks(PROMPT_CHUNK) {
            let wanted = input_ids.len();
            let text = Advance { adapter, cache: &mut cache, input_ids, wanted };
            logits.extend(self.advance(&mut [text])?.swap_remove(0));
        }
        Ok(logits)
    }
}

impl AttachedAdapter {
    /// Bytes that it takes.
    pub fn held_bytes(&self) -> u64 {
        self.0.held_bytes()
    }
}

impl TextCache {
    /// Tokens that it holds.
    pub fn length(&self) -> usize {
        self.0.length()
    }

    /// The same beginning of so many tokens, for another text that begins alike; what both have is in
    /// memory once.
    ///
    /// # Panics
    /// When it is not as long.
    pub fn beginning(&self, tokens: usize) -> TextCache {
        TextCache(self.0.prefix(tokens))
    }
}

impl Session<'_> {
    /// Appends tokens; logits of the position after them.
    pub fn extend(&mut self, input_ids: &[u32]) -> Result<Vec<f32>, BackendError> {
        let Self { responder, adapter, cache } = self;
        let mut logits = Vec::new();
        for input_ids in input_ids.chunks(PROMPT_CHUNK) {
            let text = Advance { adapter: *adapter, cache, input_ids, wanted: 1 };
            logits = responder.advance(&mut [text])?.swap_remove(0);
        }
        if logits.is_empty() {
            return Err(BackendError::Sequence("there are no tokens to read".to_owned()));
        }
        Ok(logits)
    }
}
