//! Decoding with paged KV caches and grouped LoRA.

use super::{CpuBackend, rows};
use crate::train::backend::cpu::attention::kv_cache::CpuKvCache;
use crate::train::backend::cpu::attention::paged::{self, NewTokens};
use crate::train::backend::cpu::buffer_pool::CpuMatrix;
use crate::train::backend::cpu::gemm::weight::CpuWeight;
use crate::train::backend::cpu::layers::grouped_lora::{self, BaseLinear, PackedLoraGroup};
use crate::train::backend::cpu::layers::linear::{MAX_LAYERS, PackedLora};
use crate::train::backend::cpu::vector;
use crate::train::backend::{
    AttentionShape, CachedRows, DecodingOps, LoraGroup, LoraPair, Outcome,
};

impl DecodingOps for CpuBackend {
    type KvCache = CpuKvCache;
    type PackedLora = PackedLora;

    fn new_cache(&self, layers: usize, shape: &AttentionShape) -> Outcome<CpuKvCache> {
        Ok(CpuKvCache::new(self.isa, layers, shape, &self.page_memory))
    }

    fn reserve(&self, cache: &mut CpuKvCache, tokens: usize) -> Outcome<()> {
        cache.reserve(tokens);
        Ok(())
    }

    fn attend_cached(
        &self,
        layer: usize,
        queries: &CpuMatrix,
        keys: &CpuMatrix,
        values: &CpuMatrix,
        sequences: &mut [CachedRows<'_, Self>],
        shape: &AttentionShape,
    ) -> Outcome<CpuMatrix> {
        let width = keys.columns();
        for CachedRows { rows, cache } in sequences.iter_mut() {
            let part = rows.start * width..rows.end * width;
            cache.write(layer, &keys.values()[part.clone()], &values.values()[part]);
        }
        let mut output = self.pool.acquire(queries.rows(), queries.columns());
        let mut new = Vec::with_capacity(sequences.len());
        for CachedRows { rows, cache } in sequences.iter() {
            new.push(NewTokens { rows: rows.clone(), cache });
        }
        let into = output.values_mut();
        paged::forward(self.isa, layer, queries.values(), &new, shape, into);
        Ok(output)
    }

    fn advance(&self, cache: &mut CpuKvCache, tokens: usize) {
        cache.advance(tokens);
    }

    fn cached_tokens(&self, cache: &CpuKvCache) -> usize {
        cache.length()
    }

    fn pack_lora(&self, pair: &LoraPair<Self>, scale: f32) -> Outcome<PackedLora> {
        Ok(self.forward_pair(pair, scale))
    }

    fn linears_grouped_lora<const COUNT: usize>(
        &self,
        x: &CpuMatrix,
        weights: [&CpuWeight; COUNT],
        groups: &[LoraGroup<'_, Self, COUNT>],
    ) -> [Outcome<CpuMatrix>; COUNT] {
        let mut made = weights.map(|weight| self.pool.acquire(x.rows(), weight.forward.outputs));
        let layers = weights
            .map(|weight| BaseLinear { weight: &weight.forward, bias: weight.bias.as_deref() });
        let groups: Vec<PackedLoraGroup<'_>> = groups
            .iter()
            .map(|group| {
                let mut pairs = [None; MAX_LAYERS];
                for (into, pair) in pairs.iter_mut().zip(group.pairs) {
                    *into = pair;
                }
                PackedLoraGroup { rows: group.rows.clone(), pairs }
            })
            .collect();
        let mut results = made.each_mut().map(CpuMatrix::values_mut);
        grouped_lora::forward(self.isa, &self.pool, rows(x), &layers, &groups, &mut results);
        made.map(Ok)
    }

    fn logits(&self, x: &CpuMatrix, head: &CpuWeight, soft_cap: Option<f32>) -> Outcome<CpuMatrix> {
        let [logits] = self.linears_grouped_lora(x, [head], &[]);
        let mut logits = logits?;
        if let Some(cap) = soft_cap {
            vector::soft_cap(self.isa, logits.values_mut(), cap);
        }
        Ok(logits)
    }
}
