//! Continues a text token by token: keys and values of what came before are kept.

use super::Decoder;
use super::adapter::Adapter;
use super::forward::{Beside, LayerCache, Sight};
use crate::train::backend::{Backend, Outcome, Segment};
use crate::train::engine::EngineError;

/// Keys and values of one conversation, a pair a layer.
pub struct KvCache<B: Backend> {
    layers: Vec<LayerCache<B>>,
    length: usize,
}

impl<B: Backend> Decoder<B> {
    /// A cache that holds nothing.
    pub fn new_cache(&self) -> Outcome<KvCache<B>> {
        let width = self.config.kv_heads * self.config.head_dim;
        let mut layers = Vec::with_capacity(self.blocks.len());
        for _ in &self.blocks {
            layers.push(LayerCache {
                keys: self.backend.zeros(0, width)?,
                values: self.backend.zeros(0, width)?,
            });
        }
        Ok(KvCache { layers, length: 0 })
    }

    /// Appends `ids` to what `cache` holds; logits of the last position.
    pub fn extend(
        &self,
        adapter: Option<&Adapter<B>>,
        cache: &mut KvCache<B>,
        ids: &[u32],
    ) -> Outcome<Vec<f32>> {
        self.check(cache.length, ids)?;
        let start = cache.length as u32;
        let sight = Sight::Caches(&mut cache.layers);
        let x = self.run_text(adapter, ids, start, sight)?;
        cache.length += ids.len();
        let last = self.backend.indexes(&[ids.len() as u32 - 1])?;
        let last = self.backend.take_rows(&x, &last)?;
        self.logits_of(adapter, &last)
    }

    /// Logits of every position of one sequence, `[tokens, vocabulary]`.
    pub fn logits(&self, adapter: Option<&Adapter<B>>, ids: &[u32]) -> Outcome<Vec<f32>> {
        self.check(0, ids)?;
        let segments = [Segment::alone(0..ids.len())];
        let x = self.run_text(adapter, ids, 0, Sight::Segments(&segments))?;
        self.logits_of(adapter, &x)
    }

    /// The residual stream behind the last block, of one text whose first token here stands at
    /// `start`.
    fn run_text(
        &self,
        adapter: Option<&Adapter<B>>,
        ids: &[u32],
        start: u32,
        sight: Sight<'_, B>,
    ) -> Outcome<B::Matrix> {
        let positions: Vec<u32> = (start..start + ids.len() as u32).collect();
        let (ids, positions) = (self.backend.indexes(ids)?, self.backend.indexes(&positions)?);
        let x = self.embed(adapter, &ids, &positions)?;
        let all = 0..self.blocks.len();
        Ok(self.run_blocks(all, x, &Beside::plain(adapter), &positions, sight, false)?.0)
    }

    fn logits_of(&self, adapter: Option<&Adapter<B>>, x: &B::Matrix) -> Outcome<Vec<f32>> {
        let normed = self.backend.norm(x, &self.final_norm.norm)?;
        let logits = self.backend.logits(&normed, self.head(adapter), self.config.logit_cap)?;
        self.backend.values(&logits)
    }

    /// Refuses token ids and lengths that the model does not have.
    pub fn check(&self, before: usize, ids: &[u32]) -> Result<(), EngineError> {
        if ids.is_empty() {
            return Err(EngineError::Sequence("there are no tokens to read".to_owned()));
        }
        if before + ids.len() > self.config.context_length {
            return Err(EngineError::Sequence(format!(
                "{} tokens are more than the model's context of {}",
                before + ids.len(),
                self.config.context_length
            )));
        }
        if let Some(id) = ids.iter().find(|id| **id as usize >= self.config.vocabulary) {
            return Err(EngineError::Sequence(format!(
                "token {id} is outside of the model's vocabulary of {}",
                self.config.vocabulary
            )));
        }
        Ok(())
    }
}
