//! Attention of one segment, forward and backward, a chunk of queries at a time, with causal masks.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ops::Range;

use candle_core::{D, Tensor};

use super::transfers::HostTransfers;
use crate::train::backend::{AttentionShape, Outcome};

/// A score that a query does not see.
const UNSEEN: f32 = f32::NEG_INFINITY;

/// Scores that exist at once: 512 MiB of them, and a few times that while they become probabilities.
/// Candle's kernels count elements in 31 bits, which long sequences would exceed.
pub const MAX_SCORES: usize = 1 << 27;

/// Most elements of all cached masks.
const MAX_MASK_ELEMENTS: usize = 1 << 26;

/// Attention and its cache of masks.
pub struct CandleAttention {
    max_scores: usize,
    max_mask_elements: usize,
    masks: RefCell<MaskCache>,
}

#[derive(Default)]
struct MaskCache {
    /// 0, 1, 2 …, as floats.
    positions: Option<Tensor>,
    /// By queries, keys and window.
    known: HashMap<(usize, usize, Option<usize>), Tensor>,
    elements: usize,
}

impl Default for CandleAttention {
    fn default() -> Self {
        Self::new(MAX_SCORES, MAX_MASK_ELEMENTS)
    }
}

/// Queries of one chunk, and the number of keys that the last of them sees.
struct QueryChunk {
    queries: Range<usize>,
    keys: usize,
}

impl CandleAttention {
    /// Attention with at most `max_scores` scores at once (those of one query at least) and cached masks of at
    /// most `max_mask_elements` elements together (the newest at least).
    pub fn new(max_scores: usize, max_mask_elements: usize) -> Self {
        Self { max_scores, max_mask_elements, masks: RefCell::default() }
    }

    /// Number of cached masks, and their elements.
    #[cfg(test)]
    pub fn cached_masks(&self) -> (usize, usize) {
        let masks = self.masks.borrow();
        (masks.known.len(), masks.elements)
    }

    /// The queries in chunks, in order; they are the last of the keys.
    fn chunks(&self, queries: usize, keys: usize, heads: usize) -> Vec<QueryChunk> {
        let at_once = (self.max_scores / (heads * keys).max(1)).clamp(1, queries.max(1));
        let mut chunks = Vec::with_capacity(queries.div_ceil(at_once));
        for start in (0..queries).step_by(at_once) {
            let end = (start + at_once).min(queries);
            chunks.push(QueryChunk { queries: start..end, keys: keys - queries + end });
        }
        chunks
    }

    /// Output of queries that are the last of the keys, in rows.
    pub fn forward(
        &self,
        transfers: &HostTransfers,
        [queries, keys, values]: [&Tensor; 3],
        shape: &AttentionShape,
    ) -> Outcome<Tensor> {
        let mut outputs = Vec::new();
        for chunk in self.chunks(queries.dim(0)?, keys.dim(0)?, shape.heads) {
            let rows = queries.narrow(0, chunk.queries.start, chunk.queries.len())?;
            let rows = heads(&rows, shape.heads, shape.head_dim)?;
            let dims = rows.dims3()?;
            let rows = grouped(&rows, shape)?;
            let keys = heads(&keys.narrow(0, 0, chunk.keys)?, shape.kv_heads, shape.head_dim)?;
            let values = heads(&values.narrow(0, 0, chunk.keys)?, shape.kv_heads, shape.head_dim)?;
            let (probabilities, _) = self.probabilities(transfers, &rows, &keys, shape)?;
            let output = probabilities.matmul(&values)?.reshape(dims)?;
            outputs.push(rows_of_heads(&output)?);
        }
        Ok(Tensor::cat(&outputs, 0)?)
    }

    /// Gradients of queries, keys and values of one segment, in rows.
    pub fn backward(
        &self,
        transfers: &HostTransfers,
        gradient: &Tensor,
        [queries, keys, values]: [&Tensor; 3],
        shape: &AttentionShape,
    ) -> Outcome<[Tensor; 3]> {
        let mut query_gradients = Vec::new();
        let mut others: Option<[Tensor; 2]> = None;
        // The last chunk sees every key; the gradients of the others are added to those of their keys.
        for chunk in self.chunks(queries.dim(0)?, keys.dim(0)?, shape.heads).iter().rev() {
            let rows = |matrix: &Tensor| -> Outcome<Tensor> {
                let part = matrix.narrow(0, chunk.queries.start, chunk.queries.len())?;
                heads(&part, shape.heads, shape.head_dim)
            };
            let query_heads = rows(queries)?;
            let dims = query_heads.dims3()?;
            let queries = grouped(&query_heads, shape)?;
            let gradient = grouped(&rows(gradient)?, shape)?;
            let keys = heads(&keys.narrow(0, 0, chunk.keys)?, shape.kv_heads, shape.head_dim)?;
            let values = heads(&values.narrow(0, 0, chunk.keys)?, shape.kv_heads, shape.head_dim)?;
            let (probabilities, cap_derivative) =
                self.probabilities(transfers, &queries, &keys, shape)?;
            // Softmax: the score's gradient is p · (dp - Σ p · dp).
            let score_gradients = gradient.matmul(&values.t()?)?;
            let mean = (&probabilities * &score_gradients)?.sum_keepdim(D::Minus1)?;
            let mut score_gradients = (&probabilities * score_gradients.broadcast_sub(&mean)?)?;
            if let Some(cap_derivative) = cap_derivative {
                score_gradients = (score_gradients * cap_derivative)?;
            }
            let score_gradients = (score_gradients * f64::from(shape.scale))?;
            let query_gradient = score_gradients.matmul(&keys)?.reshape(dims)?;
            query_gradients.push(rows_of_heads(&query_gradient)?);
            let made = [
                rows_of_heads(&score_gradients.t()?.matmul(&queries)?)?,
                rows_of_heads(&probabilities.t()?.matmul(&gradient)?)?,
            ];
            others = Some(match others {
                None => made,
                Some([keys, values]) => {
                    [add_to_first_rows(&keys, &made[0])?, add_to_first_rows(&values, &made[1])?]
                }
            });
        }
        query_gradients.reverse();
        let [keys, values] = match others {
            Some(made) => made,
            None => [keys.zeros_like()?, values.zeros_like()?],
        };
        Ok([Tensor::cat(&query_gradients, 0)?, keys, values])
    }

    /// Probabilities `[kv_heads, group · queries, keys]`, and the derivative of the soft cap where
    /// there is one. `queries` is `[kv_heads, group · queries, head_dim]`.
    fn probabilities(
        &self,
        transfers: &HostTransfers,
        queries: &Tensor,
        keys: &Tensor,
        shape: &AttentionShape,
    ) -> Outcome<(Tensor, Option<Tensor>)> {
        let group = shape.heads / shape.kv_heads;
        let (kv_heads, grouped, _) = queries.dims3()?;
        let (tokens, all) = (grouped / group, keys.dim(1)?);
        let mut scores = (queries.matmul(&keys.t()?)? * f64::from(shape.scale))?;
        let mut cap_derivative = None;
        if let Some(cap) = shape.soft_cap {
            let tanh = (scores / f64::from(cap))?.tanh()?;
            cap_derivative = Some((1.0 - tanh.sqr()?)?);
            scores = (tanh * f64::from(cap))?;
        }
        let mask = self.mask(transfers, tokens, all, shape.window)?;
        let scores = scores.reshape((kv_heads, group, tokens, all))?.broadcast_add(&mask)?;
        let probabilities = candle_nn::ops::softmax_last_dim(&scores.contiguous()?)?;
        Ok((probabilities.reshape((kv_heads, grouped, all))?, cap_derivative))
    }

    /// What keys a query sees, added to scores: 0 or -∞, `[queries, keys]`; the queries are the
    /// last of the keys. Made on the device from positions, once for each shape.
    pub fn mask(
        &self,
        transfers: &HostTransfers,
        queries: usize,
        keys: usize,
        window: Option<usize>,
    ) -> Outcome<Tensor> {
        let masks = &mut *self.masks.borrow_mut();
        if let Some(mask) = masks.known.get(&(queries, keys, window)) {
            return Ok(mask.clone());
        }
        let positions = masks.positions(transfers, keys)?;
        let rows = positions.narrow(0, keys - queries, queries)?.unsqueeze(1)?;
        let columns = positions.narrow(0, 0, keys)?.unsqueeze(0)?;
        let back = rows.broadcast_sub(&columns)?;
        let seen = back.zeros_like()?;
        let unseen = Tensor::full(UNSEEN, back.shape(), back.device())?;
        let mut mask = back.ge(&seen)?.where_cond(&seen, &unseen)?;
        if let Some(window) = window {
            let reach = Tensor::full(window as f32, back.shape(), back.device())?;
            mask = back.lt(&reach)?.where_cond(&mask, &unseen)?;
        }
        if masks.elements + mask.elem_count() > self.max_mask_elements {
            masks.known.clear();
            masks.elements = 0;
        }
        masks.elements += mask.elem_count();
        masks.known.insert((queries, keys, window), mask.clone());
        Ok(mask)
    }
}

impl MaskCache {
    /// At least the first `count` positions.
    fn positions(&mut self, transfers: &HostTransfers, count: usize) -> Outcome<Tensor> {
        if let Some(known) = &self.positions
            && known.dim(0)? >= count
        {
            return Ok(known.clone());
        }
        // A power of two, so that growing sequences seldom need new ones.
        let values: Vec<f32> = (0..count.next_power_of_two()).map(|at| at as f32).collect();
        let made = transfers.floats(&values, values.len())?;
        self.positions = Some(made.clone());
        Ok(made)
    }
}

/// Rows of one segment as `[heads, tokens, head_dim]`.
fn heads(rows: &Tensor, heads: usize, head_dim: usize) -> Outcome<Tensor> {
    let tokens = rows.dim(0)?;
    Ok(rows.reshape((tokens, heads, head_dim))?.transpose(0, 1)?.contiguous()?)
}

/// `[heads, tokens, head_dim]` back to rows.
fn rows_of_heads(heads: &Tensor) -> Outcome<Tensor> {
    let (count, tokens, width) = heads.dims3()?;
    Ok(heads.transpose(0, 1)?.reshape((tokens, count * width))?)
}

/// Splits the heads of queries by the key head that they share.
fn grouped(queries: &Tensor, shape: &AttentionShape) -> Outcome<Tensor> {
    let (heads, tokens, width) = queries.dims3()?;
    let group = heads / shape.kv_heads;
    Ok(queries.reshape((shape.kv_heads, group * tokens, width))?)
}

/// Adds `more` to as many of the first rows.
fn add_to_first_rows(all: &Tensor, more: &Tensor) -> Outcome<Tensor> {
    let (rows, first) = (all.dim(0)?, more.dim(0)?);
    let sum = (all.narrow(0, 0, first)? + more)?;
    Ok(Tensor::cat(&[sum, all.narrow(0, first, rows - first)?], 0)?)
}
