//! Continues texts: keys and values of what came before are kept, and several texts go through the
//! blocks in one pass, each with its adapter.

use std::ops::Range;

use super::Decoder;
use super::adapter::{Adapter, ReadyAdapter};
use super::forward::{AdaptedRows, Beside, Sight};
use crate::train::backend::BackendError;
use crate::train::backend::{Backend, CachedRows, Outcome, Segment};

/// A text's part in a pass.
pub struct TextPass<'a, B: Backend> {
    /// What is beside the base for it.
    pub adapter: Option<&'a ReadyAdapter<B>>,
    /// What came before.
    pub cache: &'a mut B::KvCache,
    /// Its next tokens, one at least.
    pub ids: &'a [u32],
    /// How many of them, counted from the last, the logits are wanted of.
    pub wanted: usize,
}

/// Rows of a pass that have the same adapter, or none.
struct Run<'a, B: Backend> {
    rows: Range<usize>,
    adapter: Option<&'a ReadyAdapter<B>>,
    /// The rows whose logits are wanted.
    wanted: Vec<u32>,
}

impl<'a, B: Backend> Run<'a, B> {
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
    /// A cache that holds nothing.
    pub fn new_cache(&self) -> Outcome<B::KvCache> {
        let Some(block) = self.blocks.first() else {
            return Err(BackendError::Sequence("the model has no blocks".to_owned()));
        };
        self.backend.new_cache(self.blocks.len(), &block.attention)
    }

    /// Appends each text's tokens to what its cache holds; the logits that each wants, `[wanted,
    /// vocabulary]` row-major.
    ///
    /// # Errors
    /// Before anything is computed, when [`Decoder::check`] refuses one of the texts.
    pub fn advance(&self, texts: Vec<TextPass<'_, B>>) -> Outcome<Vec<Vec<f32>>> {
        for text in &texts {
            self.check(self.backend.cached_tokens(text.cache), text.ids)?;
        }
        // Rows of one adapter stand together; they come out alike wherever they stand.
        let mut texts: Vec<(usize, TextPass<'_, B>)> = texts.into_iter().enumerate().collect();
        texts.sort_by_key(|(_, text)| text.adapter.map(std::ptr::from_ref));

        let (mut ids, mut positions) = (Vec::new(), Vec::new());
        let mut runs: Vec<Run<'_, B>> = Vec::new();
        let mut wanted = Vec::with_capacity(texts.len());
        let mut rows_of_texts = Vec::with_capacity(texts.len());
        for (index, text) in texts {
            let TextPass { adapter, cache, ids: new, wanted: last } = text;
            let start = self.backend.cached_tokens(cache) as u32;
            let rows = ids.len()..ids.len() + new.len();
            ids.extend_from_slice(new);
            positions.extend(start..start + new.len() as u32);
            let of_last = rows.end.saturating_sub(last).max(rows.start) as u32..rows.end as u32;
            wanted.push((index, of_last.len()));
            match runs.last_mut() {
                Some(run) if same(run.adapter, adapter) => {
                    run.rows.end = rows.end;
                    run.wanted.extend(of_last);
                }
                _ => runs.push(Run { rows: rows.clone(), adapter, wanted: of_last.collect() }),
            }
            self.backend.reserve(cache, new.len())?;
            rows_of_texts.push(CachedRows { rows, cache });
        }

        let x = self.embed_runs(&runs, &ids, &positions)?;
        let positions = self.backend.indexes(&positions)?;
        let adapted = runs.iter().filter_map(|run| {
            run.adapter.map(|adapter| AdaptedRows { rows: run.rows.clone(), adapter })
        });
        let beside = Beside::answering(adapted.collect());
        let mut sight = Sight::Texts(rows_of_texts);
        let all = 0..self.blocks.len();
        let (x, _) = self.run_blocks(all, x, &beside, &positions, &mut sight, false)?;
        if let Sight::Texts(texts) = sight {
            for CachedRows { rows, cache } in texts {
                self.backend.advance(cache, rows.len());
            }
        }

        let logits = self.logits_of_runs(&runs, &x)?;
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

    /// The residual stream in front of the first block.
    fn embed_runs(
        &self,
        runs: &[Run<'_, B>],
        ids: &[u32],
        positions: &[u32],
    ) -> Outcome<B::Matrix> {
        let backend = &self.backend;
        let mut x: Option<B::Matrix> = None;
        let mut next = 0;
        while let Some(run) = runs.get(next) {
            // Runs that read the model's own embedding go together.
            let mut rows = run.rows.clone();
            next += 1;
            while run.embedding().is_none()
                && let Some(more) = runs.get(next).filter(|more| more.embedding().is_none())
            {
                rows.end = more.rows.end;
                next += 1;
            }
            let table = run.embedding().unwrap_or(&self.embedding);
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

    /// The logits of the rows that are wanted, in their order.
    fn logits_of_runs(&self, runs: &[Run<'_, B>], x: &B::Matrix) -> Outcome<Vec<f32>> {
        let mut all = Vec::new();
        let mut next = 0;
        while let Some(run) = runs.get(next) {
            let mut wanted = run.wanted.clone();
            next += 1;
            while run.head().is_none()
                && let Some(more) = runs.get(next).filter(|more| more.head().is_none())
            {
                wanted.extend_from_slice(&more.wanted);
                next += 1;
            }
            if wanted.is_empty() {
                continue;
            }
            let rows = self.backend.gather_rows(x, &self.backend.indexes(&wanted)?)?;
            let normed = self.backend.norm(&rows, &self.final_norm.norm)?;
            let head = run.head().or(self.head.as_ref()).unwrap_or(&self.embedding);
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

    /// Appends `ids` to what `cache` holds, with the adapter that trains; logits of the last position.
    pub fn extend(
        &self,
        adapter: Option<&Adapter<B>>,
        cache: &mut B::KvCache,
        ids: &[u32],
    ) -> Outcome<Vec<f32>> {
        let start = self.backend.cached_tokens(cache);
        self.check(start, ids)?;
        self.backend.reserve(cache, ids.len())?;
        let mut sight = Sight::Texts(vec![CachedRows { rows: 0..ids.len(), cache }]);
        let x = self.run_text(adapter, ids, start as u32, &mut sight)?;
        if let Sight::Texts(texts) = sight {
            for CachedRows { rows, cache } in texts {
                self.backend.advance(cache, rows.len());
            }
        }
        let last = self.backend.indexes(&[ids.len() as u32 - 1])?;
        let last = self.backend.gather_rows(&x, &last)?;
        self.logits_of(adapter, &last)
    }

    /// Logits of every position of one sequence, `[tokens, vocabulary]`.
    pub fn logits(&self, adapter: Option<&Adapter<B>>, ids: &[u32]) -> Outcome<Vec<f32>> {
        self.check(0, ids)?;
        let segments = [Segment::alone(0..ids.len())];
        let x = self.run_text(adapter, ids, 0, &mut Sight::Segments(&segments))?;
        self.logits_of(adapter, &x)
    }

    /// The residual stream behind the last block, of one text whose first token here stands at
    /// `start`.
    fn run_text(
        &self,
        adapter: Option<&Adapter<B>>,
        ids: &[u32],
        start: u32,
        sight: &mut Sight<'_, B>,
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
    pub fn check(&self, before: usize, ids: &[u32]) -> Result<(), BackendError> {
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

fn same<B: Backend>(one: Option<&ReadyAdapter<B>>, other: Option<&ReadyAdapter<B>>) -> bool {
    one.map(std::ptr::from_ref) == other.map(std::ptr::from_ref)
}
