//! One sequence that the scheduler has admitted: its tokens, how many of them are computed, and its output.

use std::sync::Arc;

use super::error::ServeError;
use super::loaded_model::{LoadedModel, NamedAdapter};
use super::prefix_cache::PrefixCacheKey;
use super::sequence_group::SequenceGroup;
use super::sequence_output::SequenceOutput;
use super::tenant::Tenant;
use crate::train::engine::{DecodeStep, SequenceCache};

/// A sequence that is running or preempted.
pub(super) struct GenerationSequence {
    pub model: Arc<LoadedModel>,
    pub adapter: Option<NamedAdapter>,
    /// Whose it is.
    pub tenant: Arc<Tenant>,
    /// The prompt and the generated tokens.
    pub tokens: Vec<u32>,
    /// Keys and values of the computed tokens, which are the first of `tokens`.
    pub cache: SequenceCache,
    /// Position in the order of arrival.
    pub arrival: u64,
    output: SequenceOutput,
    /// Further sequences of the same prompt, which fork off when it is prefilled.
    siblings: Vec<SequenceOutput>,
    /// Positions of the prompt whose logits the outputs have received, if they need them.
    scored: usize,
}

/// What a sequence did with the logits of a step.
pub(super) struct StepOutcome {
    /// Sequences of the same prompt that start to decode.
    pub forked: Vec<GenerationSequence>,
    pub is_finished: bool,
}

impl GenerationSequence {
    /// Starts the sequences of a prompt as one; `None` when there are none. `cache` holds the prefix that
    /// is computed already.
    pub fn new(group: SequenceGroup, cache: SequenceCache, arrival: u64) -> Option<Self> {
        // It does not wait any more.
        let SequenceGroup { model, adapter, tenant, place: _, outputs: mut siblings } = group;
        if siblings.is_empty() {
            return None;
        }
        let output = siblings.remove(0);
        let tokens = output.prompt().to_vec();
        Some(Self { model, adapter, tenant, tokens, cache, arrival, output, siblings, scored: 0 })
    }

    /// Under which key its prefix may be shared.
    pub fn prefix_cache_key(&self) -> PrefixCacheKey {
        PrefixCacheKey::new(&self.model, self.adapter.as_ref(), &self.tenant)
    }

    /// Number of sequences, with those that have not forked off yet.
    pub fn sequences(&self) -> usize {
        1 + self.siblings.len()
    }

    /// Number of tokens whose keys and values are in the cache.
    pub fn computed_tokens(&self) -> usize {
        self.cache.length()
    }

    /// Number of tokens that have yet to be computed: one while it decodes, more while it is prefilled.
    pub fn uncomputed_tokens(&self) -> usize {
        self.tokens.len() - self.computed_tokens()
    }

    /// Whether the logits of every position of the prompt are needed.
    pub fn needs_prompt_logits(&self) -> bool {
        self.output.needs_prompt_logits()
    }

    /// Whether the client is still connected. All sequences of a prompt have the same client.
    pub fn is_connected(&self) -> bool {
        self.output.is_connected()
    }

    /// Its input to a step that computes `count` of its tokens.
    pub fn step_input(&mut self, count: usize) -> DecodeStep<'_> {
        let computed = self.computed_tokens();
        let needs_prompt = self.needs_prompt_logits() && self.scored < self.output.prompt().len();
        let wanted = if needs_prompt {
            (computed + count).saturating_sub(self.scored).min(count)
        } else {
            usize::from(computed + count == self.tokens.len())
        };
        DecodeStep {
            adapter: self.adapter.as_ref().map(|adapter| &*adapter.attached),
            cache: &mut self.cache,
            input_ids: &self.tokens[computed..computed + count],
            wanted,
        }
    }

    /// Receives the logits that a step computed, and appends the next token once all tokens are computed.
    pub fn accept_logits(&mut self, mut logits: Vec<f32>) -> StepOutcome {
        let vocabulary = self.model.responder().vocabulary();
        let computed = self.computed_tokens();
        if self.needs_prompt_logits() && self.scored < self.output.prompt().len() {
            let first = computed - logits.len() / vocabulary.max(1);
            for output in std::iter::once(&mut self.output).chain(&mut self.siblings) {
                output.accept_prompt_logits(first, &logits, vocabulary);
            }
            self.scored = computed;
        }
        let mut forked = Vec::new();
        if computed < self.tokens.len() {
            return StepOutcome { forked, is_finished: false };
        }
        let mut last = logits.split_off(logits.len().saturating_sub(vocabulary));
        for mut output in std::mem::take(&mut self.siblings) {
            let Some(token) = output.next_token(&mut last.clone()) else { continue };
            let mut tokens = self.tokens.clone();
            tokens.push(token);
            forked.push(Self {
                model: Arc::clone(&self.model),
                adapter: self.adapter.clone(),
                tenant: Arc::clone(&self.tenant),
                tokens,
                cache: self.cache.beginning(computed),
                arrival: self.arrival,
                output,
                siblings: Vec::new(),
                scored: self.scored,
            });
        }
        let next = self.output.next_token(&mut last);
        self.tokens.extend(next);
        StepOutcome { forked, is_finished: next.is_none() }
    }

    /// Ends its outputs because of a fault.
    pub fn fail(&mut self, mut error: impl FnMut() -> ServeError) {
        for output in std::iter::once(&mut self.output).chain(&mut self.siblings) {
            output.fail(error());
        }
    }
}
