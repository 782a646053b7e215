//! What answering keeps: keys and values of texts, and LoRA pairs beside runs of rows.

use candle_core::Tensor;

use super::{CandleBackend, times};
use crate::train::backend::{AttentionShape, Backend, LoraPair, Outcome, RowsOfText};

/// Keys and values of one text, a pair a layer.
pub struct Cache {
    layers: Vec<Option<[Tensor; 2]>>,
    length: usize,
}

impl Cache {
    /// Of no token yet.
    pub(super) fn new(layers: usize) -> Self {
        Self { layers: vec![None; layers], length: 0 }
    }

    /// Tokens.
    pub(super) fn length(&self) -> usize {
        self.length
    }

    /// The tokens of a pass count.
    pub(super) fn advance(&mut self, tokens: usize) {
        self.length += tokens;
    }

    /// Puts a layer's new rows below those of the tokens that count; all of its rows.
    fn put(&mut self, layer: usize, new: [Tensor; 2]) -> Outcome<[Tensor; 2]> {
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
pub struct Prepared {
    pub(super) pair: [Tensor; 2],
    pub(super) scale: f64,
}

impl Prepared {
    pub(super) fn new(pair: &LoraPair<CandleBackend>, scale: f32) -> Self {
        Self { pair: [pair.a.clone(), pair.b.clone()], scale: f64::from(scale) }
    }

    /// What it adds to the result for these rows.
    fn of(&self, x: &Tensor) -> Outcome<Tensor> {
        let [a, b] = &self.pair;
        Ok((times(&times(x, &a.t()?)?, &b.t()?)? * self.scale)?)
    }
}

/// `y` with what the pairs of runs add; runs are in order, and rows between them stay as they are.
pub(super) fn add_runs<'a>(
    x: &Tensor,
    y: Tensor,
    runs: impl Iterator<Item = (std::ops::Range<usize>, Option<&'a Prepared>)>,
) -> Outcome<Tensor> {
    let mut parts = Vec::new();
    let mut done = 0;
    for (rows, prepared) in runs {
        let Some(prepared) = prepared else { continue };
        if rows.start > done {
            parts.push(y.narrow(0, done, rows.start - done)?);
        }
        let own = y.narrow(0, rows.start, rows.len())?;
        parts.push((own + prepared.of(&x.narrow(0, rows.start, rows.len())?)?)?);
        done = rows.end;
    }
    let all = y.dim(0)?;
    if done < all {
        parts.push(y.narrow(0, done, all - done)?);
    }
    Ok(Tensor::cat(&parts, 0)?)
}

/// Attention of each text's rows over its cache.
pub(super) fn attend(
    backend: &CandleBackend,
    layer: usize,
    [queries, keys, values]: [&Tensor; 3],
    texts: &mut [RowsOfText<'_, CandleBackend>],
    shape: &AttentionShape,
) -> Outcome<Tensor> {
    let mut parts = Vec::with_capacity(texts.len());
    for RowsOfText { rows, cache } in texts {
        let part = |matrix: &Tensor| matrix.narrow(0, rows.start, rows.len());
        let [keys, values] = cache.put(layer, [part(keys)?, part(values)?])?;
        let queries = part(queries)?;
        let inputs = [&queries, &keys, &values];
        parts.push(backend.attention.forward(&backend.crossing, inputs, shape)?);
    }
    match parts.len() {
        0 => backend.zeros(0, shape.heads * shape.head_dim),
        1 => Ok(parts.remove(0)),
        _ => Ok(Tensor::cat(&parts, 0)?),
    }
}
