//! Decoding with KV caches and adapters of several sequences.

use candle_core::Tensor;

use super::CandleBackend;
use super::kv_cache::{self, CandleKvCache, CandlePackedLora, add_lora_groups};
use super::weight::{CandleWeight, soft_capped};
use crate::train::backend::{
    AttentionShape, CachedRows, DecodingOps, LoraGroup, LoraPair, Outcome,
};

impl DecodingOps for CandleBackend {
    type KvCache = CandleKvCache;
    type PackedLora = CandlePackedLora;

    fn new_cache(&self, layers: usize, _shape: &AttentionShape) -> Outcome<CandleKvCache> {
        Ok(CandleKvCache::new(layers))
    }

    fn reserve(&self, _cache: &mut CandleKvCache, _tokens: usize) -> Outcome<()> {
        Ok(())
    }

    fn attend_cached(
        &self,
        layer: usize,
        queries: &Tensor,
        keys: &Tensor,
        values: &Tensor,
        sequences: &mut [CachedRows<'_, Self>],
        shape: &AttentionShape,
    ) -> Outcome<Tensor> {
        let sequences =
            sequences.iter_mut().map(|sequence| (sequence.rows.clone(), &mut *sequence.cache));
        let device = (&self.attention, &self.transfers);
        kv_cache::attend(device, layer, [queries, keys, values], sequences, shape)
    }

    fn advance(&self, cache: &mut CandleKvCache, tokens: usize) {
        cache.advance(tokens);
    }

    fn cached_tokens(&self, cache: &CandleKvCache) -> usize {
        cache.length()
    }

    fn pack_lora(&self, pair: &LoraPair<Self>, scale: f32) -> Outcome<CandlePackedLora> {
        Ok(CandlePackedLora::new(&pair.a, &pair.b, scale))
    }

    fn linears_grouped_lora<const COUNT: usize>(
        &self,
        x: &Tensor,
        weights: [&CandleWeight; COUNT],
        groups: &[LoraGroup<'_, Self, COUNT>],
    ) -> [Outcome<Tensor>; COUNT] {
        let mut layer = 0;
        weights.map(|weight| {
            let pairs = groups.iter().map(|group| (group.rows.clone(), group.pairs[layer]));
            let made = weight.forward(x).and_then(|y| add_lora_groups(x, y, pairs));
            layer += 1;
            made
        })
    }

    fn logits(&self, x: &Tensor, head: &CandleWeight, soft_cap: Option<f32>) -> Outcome<Tensor> {
        soft_capped(head.forward(x)?, soft_cap)
    }
}
