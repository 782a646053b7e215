//! Attention of sequences of one length, forward and backward, with causal masks; of one sequence a chunk of
//! queries at a time.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ops::Range;

use candle_core::Tensor;

use super::transfers::HostTransfers;
use crate::train::backend::{AttentionShape, Outcome};

/// A score that a query does not see.
const UNSEEN: f32 = f32::NEG_INFINITY;

/// Scores that exist at once: 512 MiB of them, and a few times that while they become probabilities.
/// Candle's softmax counts elements in 31 bits, which long sequences would exceed.
pub const MAX_SCORES: usize = 1 << 27;

/// Most keys of a mask that is kept: 64 MiB for each window.
pub const MAX_MASK_KEYS: usize = 1 << 12;

/// Attention and its cache of masks.
pub struct CandleAttention {
    max_scores: usize,
    max_mask_keys: usize,
    masks: RefCell<MaskCache>,
}

#[derive(Default)]
struct MaskCache {
    /// 0, 1, 2 …, as floats.
    positions: Option<Tensor>,
    /// Square masks, by window.
    squares: HashMap<Option<usize>, Tensor>,
}

impl Default for CandleAttention {
    fn default() -> Self {
        Self::new(MAX_SCORES, MAX_MASK_KEYS)
    }
}

/// Queries of one chunk, and the number of keys that the last of them sees.
struct QueryChunk {
    queries: Range<usize>,
    keys: usize,
}

impl CandleAttention {
    /// Attention with at most `max_scores` scores at once (those of one query at least), which keeps masks of at
    /// most `max_mask_keys` keys.
    pub fn new(max_scores: usize, max_mask_keys: usize) -> Self {
        Self { max_scores, max_mask_keys, masks: RefCell::default() }
    }

    /// Scores that exist at once.
    pub fn max_scores(&self) -> usize {
        self.max_scores
    }

    /// Elements of the masks that are kept.
    #[cfg(test)]
    pub fn kept_mask_elements(&self) -> usize {
        self.masks.borrow().squares.values().map(Tensor::elem_count).sum()
    }

    /// The queries of a sequence in chunks, in order; they are the last of the keys. Several sequences are one
    /// chunk: who puts them together sees to it that their scores fit.
    fn chunks(
        &self,
        queries: usize,
        keys: usize,
        count: usize,
        shape: &AttentionShape,
    ) -> Vec<QueryChunk> {
        if count > 1 {
            return vec![QueryChunk { queries: 0..queries, keys }];
        }
        let at_once = (self.max_scores / (shape.heads * keys).max(1)).clamp(1, queries.max(1));
        let mut chunks = Vec::with_capacity(queries.div_ceil(at_once));
        for start in (0..queries).step_by(at_once) {
            let end = (start + at_once).min(queries);
            chunks.push(QueryChunk { queries: start..end, keys: keys - queries + end });
        }
        chunks
    }

    /// Output of queries that are the last of the keys, in rows; of `count` sequences of one length, one after the
    /// other.
    pub fn forward(
        &self,
        transfers: &HostTransfers,
        [queries, keys, values]: [&Tensor; 3],
        count: usize,
        shape: &AttentionShape,
    ) -> Outcome<Tensor> {
        let mut outputs = Vec::new();
        for chunk in self.chunks(queries.dim(0)? / count, keys.dim(0)? / count, count, shape) {
            let [queries, keys, values] =
                self.heads_of_chunk(&chunk, [queries, keys, values], count, shape)?;
            let (probabilities, _) = self.probabilities(transfers, &queries, &keys, shape)?;
            outputs.push(rows_of_heads(&probabilities.matmul(&values)?, count, shape.heads)?);
        }
        Ok(Tensor::cat(&outputs, 0)?)
    }

    /// Gradients of queries, keys and values, in rows, of `count` sequences of one length. `along` is Σ gradient ·
    /// output of each query and head.
    pub fn backward(
        &self,
        transfers: &HostTransfers,
        [gradient, along]: [&Tensor; 2],
        [queries, keys, values]: [&Tensor; 3],
        count: usize,
        shape: &AttentionShape,
    ) -> Outcome<[Tensor; 3]> {
        let scale = f64::from(shape.scale);
        let mut query_gradients = Vec::new();
        let mut others: Option<[Tensor; 2]> = None;
        // The last chunk sees every key; the gradients of the others are added to those of their keys.
        let chunks = self.chunks(queries.dim(0)? / count, keys.dim(0)? / count, count, shape);
        for chunk in chunks.iter().rev() {
            let of_queries = |rows: &Tensor, width: usize| -> Outcome<Tensor> {
                let rows = chunk.rows_of_queries(rows, count)?;
                heads(&rows, count, shape.heads, width, shape.kv_heads)
            };
            let gradient = of_queries(gradient, shape.head_dim)?;
            let along = of_queries(along, 1)?;
            let [queries, keys, values] =
                self.heads_of_chunk(chunk, [queries, keys, values], count, shape)?;
            let (probabilities, cap_derivative) =
                self.probabilities(transfers, &queries, &keys, shape)?;
            let value_gradient = probabilities.t()?.matmul(&gradient)?;
            let score_gradients = gradient.matmul(&values.t()?)?.broadcast_sub(&along)?;
            let mut score_gradients = (probabilities * score_gradients)?;
            if let Some(cap_derivative) = cap_derivative {
                score_gradients = (score_gradients * cap_derivative)?;
            }
            // The queries have the scale in them.
            let key_gradient = score_gradients.t()?.matmul(&queries)?;
            let query_gradient = (score_gradients.matmul(&keys)? * scale)?;
            query_gradients.push(rows_of_heads(&query_gradient, count, shape.heads)?);
            let made = [
                rows_of_heads(&key_gradient, count, shape.kv_heads)?,
                rows_of_heads(&value_gradient, count, shape.kv_heads)?,
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

    /// Queries (with the scale), keys and values of a chunk, `[count · kv_heads, group · queries or keys,
    /// head_dim]`.
    fn heads_of_chunk(
        &self,
        chunk: &QueryChunk,
        [queries, keys, values]: [&Tensor; 3],
        count: usize,
        shape: &AttentionShape,
    ) -> Outcome<[Tensor; 3]> {
        let AttentionShape { heads: query_heads, kv_heads, head_dim, .. } = *shape;
        let queries = chunk.rows_of_queries(queries, count)?;
        let queries = heads(&queries, count, query_heads, head_dim, kv_heads)?;
        let of_keys = |rows: &Tensor| -> Outcome<Tensor> {
            heads(&chunk.rows_of_keys(rows, count)?, count, kv_heads, head_dim, kv_heads)
        };
        // The scale goes on the queries: they are fewer numbers than the scores.
        let queries = (queries * f64::from(shape.scale))?;
        Ok([queries, of_keys(keys)?, of_keys(values)?])
    }

    /// Probabilities `[count · kv_heads, group · queries, keys]`, and the derivative of the soft cap where
    /// there is one. `queries` is `[count · kv_heads, group · queries, head_dim]` and has the scale in it.
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
        let mut scores = queries.matmul(&keys.t()?)?;
        let mut cap_derivative = None;
        if let Some(cap) = shape.soft_cap {
            let tanh = (scores / f64::from(cap))?.tanh()?;
            cap_derivative = Some((1.0 - tanh.sqr()?)?);
            scores = (tanh * f64::from(cap))?;
        }
        let mask = self.mask(transfers, tokens, all, shape.window)?;
        scores = scores.reshape((kv_heads, group, tokens, all))?.broadcast_add(&mask)?;
        let probabilities = candle_nn::ops::softmax_last_dim(&scores)?;
        Ok((probabilities.reshape((kv_heads, grouped, all))?, cap_derivative))
    }

    /// What keys a query sees, added to scores: 0 or -∞, `[queries, keys]`; the queries are the
    /// last of the keys. It is a part of one square mask for each window, which is made on the device; only masks
    /// of more keys than that has are made anew.
    pub fn mask(
        &self,
        transfers: &HostTransfers,
        queries: usize,
        keys: usize,
        window: Option<usize>,
    ) -> Outcome<Tensor> {
        let masks = &mut *self.masks.borrow_mut();
        if keys > self.max_mask_keys {
            let positions = masks.positions(transfers, keys)?;
            return made_mask(&positions, queries, keys, window);
        }
        let known = masks.squares.get(&window).filter(|mask| mask.elem_count() >= keys * keys);
        let square = match known {
            Some(square) => square.clone(),
            None => {
                let size = keys.next_power_of_two().min(self.max_mask_keys);
                let positions = masks.positions(transfers, size)?;
                let square = made_mask(&positions, size, size, window)?;
                masks.squares.insert(window, square.clone());
                square
            }
        };
        Ok(square.narrow(0, keys - queries, queries)?.narrow(1, 0, keys)?)
    }
}

/// A mask from `positions`, see [`CandleAttention::mask`].
fn made_mask(
    positions: &Tensor,
    queries: usize,
    keys: usize,
    window: Option<usize>,
) -> Outcome<Tensor> {
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
    Ok(mask)
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

impl QueryChunk {
    /// The chunk's rows of queries, or of what belongs to them.
    fn rows_of_queries(&self, rows: &Tensor, count: usize) -> Outcome<Tensor> {
        let Range { start, end } = self.queries;
        // Several sequences are one chunk.
        let rows = if count > 1 { rows.clone() } else { rows.narrow(0, start, end - start)? };
        Ok(rows)
    }

    /// The chunk's rows of keys or values.
    fn rows_of_keys(&self, rows: &Tensor, count: usize) -> Outcome<Tensor> {
        let rows = if count > 1 { rows.clone() } else { rows.narrow(0, 0, self.keys)? };
        Ok(rows)
    }
}

/// Rows of `count` sequences with `heads` heads of `width` columns as `[count · kv_heads, heads / kv_heads · tokens,
/// width]`: heads that share keys are one after the other.
fn heads(
    rows: &Tensor,
    count: usize,
    heads: usize,
    width: usize,
    kv_heads: usize,
) -> Outcome<Tensor> {
    let tokens = rows.dim(0)? / count;
    let split = rows.reshape((count, tokens, heads, width))?.transpose(1, 2)?.contiguous()?;
    Ok(split.reshape((count * kv_heads, heads / kv_heads * tokens, width))?)
}

/// The heads of `count` sequences back to rows.
fn rows_of_heads(made: &Tensor, count: usize, heads: usize) -> Outcome<Tensor> {
    let width = made.dim(2)?;
    let tokens = made.elem_count() / (count * heads * width);
    let split = made.reshape((count, heads, tokens, width))?.transpose(1, 2)?;
    Ok(split.reshape((count * tokens, heads * width))?)
}

/// Adds `more` to as many of the first rows.
fn add_to_first_rows(all: &Tensor, more: &Tensor) -> Outcome<Tensor> {
    let (rows, first) = (all.dim(0)?, more.dim(0)?);
    let sum = (all.narrow(0, 0, first)? + more)?;
    Ok(Tensor::cat(&[sum, all.narrow(0, first, rows - first)?], 0)?)
}
