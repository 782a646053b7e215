//! Decoding: sequences continue from their KV caches, several in one step, each with its adapter.

use std::ops::Range;

use super::Decoder;
use super::adapter::{LoraAdapter, PackedAdapter};
use super::forward::{AdapterContext, AdapterGroup, AttentionContext};
use crate::train::backend::BackendError;
use crate::train::backend::{Backend, CachedRows, Outcome, Segment};

/// The tokens of one sequence in a step.
pub struct SequenceStep<'a, B: Backend> {
    /// Its adapter; `None` for the base model.
    pub adapter: Option<&'a PackedAdapter<B>>,
    /// Keys and values of its earlier tokens.
    pub cache: &'a mut B::KvCache,
    /// Its next tokens, one at least.
    pub ids: &'a [u32],
    /// Number of tokens, counted from the last, whose logits are returned.
    pub wanted: usize,
}

/// Rows of a step with the same adapter, or none.
struct AdapterBatch<'a, B: Backend> {
    rows: Range<usize>,
    adapter: Option<&'a PackedAdapter<B>>,
    /// The rows whose logits are returned.
    wanted: Vec<u32>,
}

impl<'a, B: Backend> AdapterBatch<'a, B> {
    /// An embedding of its own.
    fn embedding(&self) -> Option<&'a B::Weight> {
        self.adapter?.embedding.as_ref()
    }

    /// A head of its own.
    fn head(&self) -> Option<&'a B::Weight> {
        self.adapter?.head.as_ref()
    }
}

impl<B: Backend> Decoder<B> {
    /// An empty KV cache.
    pub fn new_cache(&self) -> Outcome<B::KvCache> {
        let Some(layer) = self.layers.first() else {
            return Err(BackendError::Sequence("the model has no layers".to_owned()));
        };
        self.backend.new_cache(self.layers.len(), &layer.attention)
    }

    /// Appends each sequence's tokens to its cache; returns the logits that each wants, `[wanted, vocabulary]`
    /// row-major.
    ///
    /// # Errors
    /// Before anything is computed, when [`Decoder::check_tokens`] refuses one of the sequences.
    pub fn step(&self, sequences: Vec<SequenceStep<'_, B>>) -> Outcome<Vec<Vec<f32>>> {
        for sequence in &sequences {
            self.check_tokens(self.backend.cached_tokens(sequence.cache), sequence.ids)?;
        }
        // Rows of one adapter are grouped; a row's result does not depend on its place.
        let mut sequences: Vec<(usize, SequenceStep<'_, B>)> =
            sequences.into_iter().enumerate().collect();
        sequences.sort_by_key(|(_, sequence)| sequence.adapter.map(std::ptr::from_ref));

        let (mut ids, mut positions) = (Vec::new(), Vec::new());
        let mut groups: Vec<AdapterBatch<'_, B>> = Vec::new();
        let mut wanted = Vec::with_capacity(sequences.len());
        let mut cached_rows = Vec::with_capacity(sequences.len());
        for (index, sequence) in sequences {
            let SequenceStep { adapter, cache, ids: new, wanted: last } = sequence;
            let start = self.backend.cached_tokens(cache) as u32;
            let rows = ids.len()..ids.len() + new.len();
            ids.extend_from_slice(new);
            positions.extend(start..start + new.len() as u32);
            let of_last = rows.end.saturating_sub(last).max(rows.start) as u32..rows.end as u32;
            wanted.push((index, of_last.len()));
            match groups.last_mut() {
                Some(group) if same(group.adapter, adapter) => {
                    group.rows.end = rows.end;
                    group.wanted.extend(of_last);
                }
                _ => groups.push(AdapterBatch {
                    rows: rows.clone(),
                    adapter,
                    wanted: of_last.collect(),
                }),
            }
            self.backend.reserve(cache, new.len())?;
            cached_rows.push(CachedRows { rows, cache });
        }

        let x = self.embed_groups(&groups, &ids, &positions)?;
        let positions = self.backend.indexes(&positions)?;
        let adapted = groups.iter().filter_map(|group| {
            group.adapter.map(|adapter| AdapterGroup { rows: group.rows.clone(), adapter })
        });
        let adapters = AdapterContext::grouped(adapted.collect());
        let mut attention_context = AttentionContext::Cached(cached_rows);
        let all = 0..self.layers.len();
        let (x, _) =
            self.run_layers(all, x, &adapters, &positions, &mut attention_context, false)?;
        if let AttentionContext::Cached(sequences) = attention_context {
            for CachedRows { rows, cache } in sequences {
                self.backend.advance(cache, rows.len());
            }
        }

        let logits = self.logits_of_groups(&groups, &x)?;
        if wanted.len() == 1 {
            return Ok(vec![logits]);
        }
        let mut made = vec![Vec::new(); wanted.len()];
        let mut rest = logits.as_slice();
        for (index, count) in wanted {
            let (own, others) = rest.split_at(count * self.config.vocabulary);
            made[index] = own.to_vec();
            rest = others;
        }
        Ok(made)
    }

    /// The residual stream before the first layer.
    fn embed_groups(
        &self,
        groups: &[AdapterBatch<'_, B>],
        ids: &[u32],
        positions: &[u32],
    ) -> Outcome<B::Matrix> {
        let backend = &self.backend;
        let mut x: Option<B::Matrix> = None;
        let mut next = 0;
        while let Some(group) = groups.get(next) {
            // Groups that read the model's own embedding go together.
            let mut rows = group.rows.clone();
            next += 1;
            while group.embedding().is_none()
                && let Some(more) = groups.get(next).filter(|more| more.embedding().is_none())
            {
                rows.end = more.rows.end;
                next += 1;
            }
            let table = group.embedding().unwrap_or(&self.embedding);
            let made =
                backend.embed(table, &backend.indexes(&ids[rows])?, self.config.embedding_scale)?;
            match &mut x {
                Some(x) => backend.append_rows(x, &made)?,
                None => x = Some(made),
            }
        }
        let Some(mut x) = x else { return backend.zeros(0, self.config.hidden) };
        if let Some(table) = &self.positions {
            backend.add(&mut x, &backend.embed(table, &backend.indexes(positions)?, 1.0)?)?;
        }
        Ok(x)
    }

    /// The logits of the wanted rows, in their order.
    fn logits_of_groups(&self, groups: &[AdapterBatch<'_, B>], x: &B::Matrix) -> Outcome<Vec<f32>> {
        let mut all = Vec::new();
        let mut next = 0;
        while let Some(group) = groups.get(next) {
            let mut wanted = group.wanted.clone();
            next += 1;
            while group.head().is_none()
                && let Some(more) = groups.get(next).filter(|more| more.head().is_none())
            {
                wanted.extend_from_slice(&more.wanted);
                next += 1;
            }
            if wanted.is_empty() {
                continue;
            }
            let rows = self.backend.gather_rows(x, &self.backend.indexes(&wanted)?)?;
            let normed = self.backend.norm(&rows, &self.final_norm.norm)?;
            let head = group.head().or(self.head.as_ref()).unwrap_or(&self.embedding);
            let logits = self.backend.logits(&normed, head, self.config.logit_cap)?;
            let values = self.backend.values(&logits)?;
            if all.is_empty() {
                all = values;
            } else {
                all.extend(values);
            }
        }
        Ok(all)
    }

    /// Appends `ids` to the cache, with the adapter that trains; returns the logits of the last position.
    pub fn extend(
        &self,
        adapter: Option<&LoraAdapter<B>>,
        cache: &mut B::KvCache,
        ids: &[u32],
    ) -> Outcome<Vec<f32>> {
        let start = self.backend.cached_tokens(cache);
        self.check_tokens(start, ids)?;
        self.backend.reserve(cache, ids.len())?;
        let mut attention_context =
            AttentionContext::Cached(vec![CachedRows { rows: 0..ids.len(), cache }]);
        let x = self.run_sequence(adapter, ids, start as u32, &mut attention_context)?;
        if let AttentionContext::Cached(sequences) = attention_context {
            for CachedRows { rows, cache } in sequences {
                self.backend.advance(cache, rows.len());
            }
        }
        let last = self.backend.indexes(&[ids.len() as u32 - 1])?;
        let last = self.backend.gather_rows(&x, &last)?;
        self.logits_of(adapter, &last)
    }

    /// Logits of every position of one sequence, `[tokens, vocabulary]`.
    pub fn logits(&self, adapter: Option<&LoraAdapter<B>>, ids: &[u32]) -> Outcome<Vec<f32>> {
        self.check_tokens(0, ids)?;
        let segments = [Segment::alone(0..ids.len())];
        let x = self.run_sequence(adapter, ids, 0, &mut AttentionContext::Segments(&segments))?;
        self.logits_of(adapter, &x)
    }

    /// The residual stream after the last layer, of one sequence whose first token here is at `start`.
    fn run_sequence(
        &self,
        adapter: Option<&LoraAdapter<B>>,
        ids: &[u32],
        start: u32,
        attention_context: &mut AttentionContext<'_, B>,
    ) -> Outcome<B::Matrix> {
        let positions: Vec<u32> = (start..start + ids.len() as u32).collect();
        let (ids, positions) = (self.backend.indexes(ids)?, self.backend.indexes(&positions)?);
        let x = self.embed(adapter, &ids, &positions)?;
        let all = 0..self.layers.len();
        Ok(self
            .run_layers(
                all,
                x,
                &AdapterContext::without_dropout(adapter),
                &positions,
                attention_context,
                false,
            )?
            .0)
    }

    fn logits_of(&self, adapter: Option<&LoraAdapter<B>>, x: &B::Matrix) -> Outcome<Vec<f32>> {
        let normed = self.backend.norm(x, &self.final_norm.norm)?;
        let logits = self.backend.logits(&normed, self.head(adapter), self.config.logit_cap)?;
        self.backend.values(&logits)
    }

    /// Refuses token ids and lengths that the model does not have.
    pub fn check_tokens(&self, before: usize, ids: &[u32]) -> Result<(), BackendError> {
        if ids.is_empty() {
            return Err(BackendError::Sequence("there are no tokens to read".to_owned()));
        }
        if before + ids.len() > self.config.context_length {
            return Err(BackendError::Sequence(format!(
                "{} tokens are more than the model's context of {}",
                before + ids.len(),
                self.config.context_length
            )));
        }
        if let Some(id) = ids.iter().find(|id| **id as usize >= self.config.vocabulary) {
            return Err(BackendError::Sequence(format!(
                "token {id} is outside of the model's vocabulary of {}",
                self.config.vocabulary
            )));
        }
        Ok(())
    }
}

fn same<B: Backend>(one: Option<&PackedAdapter<B>>, other: Option<&PackedAdapter<B>>) -> bool {
    one.map(std::ptr::from_ref) == other.map(std::ptr::from_ref)
}
