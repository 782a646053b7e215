//! Decoding with KV caches and adapters of several sequences.

use std::ops::Range;

use super::attention::AttentionShape;
use super::error::Outcome;
use super::layers::LoraPair;
use super::matrices::Matrices;

/// Decoding with KV caches, and several adapters in one step. Every backend has it.
pub trait DecodingOps: Matrices {
    /// Keys and values of one sequence, of all layers.
    type KvCache: Send;
    /// A LoRA pair with its scale, packed once for many steps; forward only.
    type PackedLora: Send;

    /// An empty cache for so many layers of `shape` (whose windows may differ).
    fn new_cache(&self, layers: usize, shape: &AttentionShape) -> Outcome<Self::KvCache>;
    /// Makes room in the cache for `tokens` new tokens.
    fn reserve(&self, cache: &mut Self::KvCache, tokens: usize) -> Outcome<()>;
    /// Writes each sequence's rows of keys and values into its cache, and attends to the whole cache. The tokens
    /// count after [`DecodingOps::advance`], which follows the last layer.
    fn attend_cached(
        &self,
        layer: usize,
        queries: &Self::Matrix,
        keys: &Self::Matrix,
        values: &Self::Matrix,
        sequences: &mut [CachedRows<'_, Self>],
        shape: &AttentionShape,
    ) -> Outcome<Self::Matrix>;
    /// Counts the tokens of a step.
    fn advance(&self, cache: &mut Self::KvCache, tokens: usize);
    /// Tokens that a cache holds.
    fn cached_tokens(&self, cache: &Self::KvCache) -> usize;
    /// Packs a LoRA pair with its scale.
    fn pack_lora(&self, pair: &LoraPair<Self>, scale: f32) -> Outcome<Self::PackedLora>;
    /// Linear layers that read the same x, three at most, where groups of rows have LoRA pairs of their own.
    /// The CPU computes the same bits for a row whatever the other rows are.
    fn linears_grouped_lora<const COUNT: usize>(
        &self,
        x: &Self::Matrix,
        weights: [&Self::Weight; COUNT],
        groups: &[LoraGroup<'_, Self, COUNT>],
    ) -> [Outcome<Self::Matrix>; COUNT];
    /// x · Wᵀ, soft-capped.
    fn logits(
        &self,
        x: &Self::Matrix,
        head: &Self::Weight,
        soft_cap: Option<f32>,
    ) -> Outcome<Self::Matrix>;
}

/// Rows of one adapter, and its pair for each layer, where it has one.
pub struct LoraGroup<'a, B: DecodingOps, const COUNT: usize> {
    /// The rows.
    pub rows: Range<usize>,
    /// The pairs.
    pub pairs: [Option<&'a B::PackedLora>; COUNT],
}

/// Rows of a step that continue a sequence.
pub struct CachedRows<'a, B: DecodingOps> {
    /// The rows.
    pub rows: Range<usize>,
    /// Keys and values of the tokens before them.
    pub cache: &'a mut B::KvCache,
}
