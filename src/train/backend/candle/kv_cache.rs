//! KV caches of sequences, and LoRA pairs of groups of rows, for decoding.

use candle_core::Tensor;

use super::query_chunks::CandleAttention;
use super::transfers::HostTransfers;
use super::weight::multiply;
use crate::train::backend::{AttentionShape, Outcome};

/// Keys and values of one sequence, for each layer.
pub struct CandleKvCache {
    layers: Vec<Option<[Tensor; 2]>>,
    length: usize,
}

impl CandleKvCache {
    /// An empty cache.
    pub(super) fn new(layers: usize) -> Self {
        Self { layers: vec![None; layers], length: 0 }
    }

    /// Cached tokens.
    pub(super) fn length(&self) -> usize {
        self.length
    }

    /// Counts the tokens of a step.
    pub(super) fn advance(&mut self, tokens: usize) {
        self.length += tokens;
    }

    /// Appends the new rows of a layer to those of the counted tokens; returns all of its rows.
    fn write(&mut self, layer: usize, new: [Tensor; 2]) -> Outcome<[Tensor; 2]> {
        let all = match &self.layers[layer] {
            None => new,
            Some(known) => {
                let mut all = Vec::with_capacity(2);
                for (known, new) in known.iter().zip(&new) {
                    all.push(Tensor::cat(&[&known.narrow(0, 0, self.length)?, new], 0)?);
                }
                [all.remove(0), all.remove(0)]
            }
        };
        self.layers[layer] = Some(all.clone());
        Ok(all)
    }
}

/// A LoRA pair, whose tensors are shared, and its scale.
pub struct CandlePackedLora {
    pub(super) pair: [Tensor; 2],
    pub(super) scale: f64,
}

impl CandlePackedLora {
    pub(super) fn new(a: &Tensor, b: &Tensor, scale: f32) -> Self {
        Self { pair: [a.clone(), b.clone()], scale: f64::from(scale) }
    }

    /// scale · (x · aᵀ) · bᵀ.
    fn forward(&self, x: &Tensor) -> Outcome<Tensor> {
        let [a, b] = &self.pair;
        multiply(&(multiply(x, &a.t()?)? * self.scale)?, &b.t()?)
    }
}

/// `y` plus the products of the LoRA pairs of groups of rows. Groups are in order; rows between them stay as
/// they are.
pub(super) fn add_lora_groups<'a>(
    x: &Tensor,
    y: Tensor,
    groups: impl Iterator<Item = (std::ops::Range<usize>, Option<&'a CandlePackedLora>)>,
) -> Outcome<Tensor> {
    let mut parts = Vec::new();
    let mut done = 0;
    for (rows, lora) in groups {
        let Some(lora) = lora else { continue };
        if rows.start > done {
            parts.push(y.narrow(0, done, rows.start - done)?);
        }
        let own = y.narrow(0, rows.start, rows.len())?;
        parts.push((own + lora.forward(&x.narrow(0, rows.start, rows.len())?)?)?);
        done = rows.end;
    }
    let all = y.dim(0)?;
    if done < all {
        parts.push(y.narrow(0, done, all - done)?);
    }
    Ok(Tensor::cat(&parts, 0)?)
}

/// Attention of the new rows of sequences over their caches, in layer `layer`.
pub(super) fn attend<'a>(
    (attention, transfers): (&CandleAttention, &HostTransfers),
    layer: usize,
    [queries, keys, values]: [&Tensor; 3],
    sequences: impl Iterator<Item = (std::ops::Range<usize>, &'a mut CandleKvCache)>,
    shape: &AttentionShape,
) -> Outcome<Tensor> {
    let mut parts = Vec::new();
    for (rows, cache) in sequences {
        let part = |matrix: &Tensor| matrix.narrow(0, rows.start, rows.len());
        let [keys, values] = cache.write(layer, [part(keys)?, part(values)?])?;
        let queries = part(queries)?;
        let inputs = [&queries, &keys, &values];
        parts.push(attention.forward(transfers, inputs, 1, shape)?);
    }
    match parts.len() {
        0 => transfers.zeros(0, shape.heads * shape.head_dim),
        1 => Ok(parts.remove(0)),
        _ => Ok(Tensor::cat(&parts, 0)?),
    }
}
