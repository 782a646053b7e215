//! Dropout masks: drawn on the host as everywhere, so that they are the same on every backend, and
//! carried to the device as bits, those of a whole pass at once.

use candle_core::Tensor;
use rayon::prelude::*;

use super::transfers::HostTransfers;
use crate::train::backend::Outcome;
use crate::train::rng::Stream;

/// One layer's mask.
pub struct CandleDropoutMask {
    /// A row's bits after the other's, each row in bytes of its own; a set bit drops.
    bytes: Tensor,
    /// The elements that each byte keeps, `[256, 8]`: 0 or 1.
    meaning: Tensor,
    columns: usize,
    /// Factor of the elements that are kept.
    factor: f64,
}

/// Masks of `layers`, see [`LayerOps::dropout_masks`](crate::train::backend::LayerOps::dropout_masks).
pub fn dropout_masks(
    transfers: &HostTransfers,
    draws: &[Stream],
    layers: &[(u64, usize)],
    rate: f32,
) -> Outcome<Vec<CandleDropoutMask>> {
    let bits: Vec<Vec<u8>> = layers
        .par_iter()
        .map(|(layer, columns)| dropped_bits(draws, *layer, *columns, rate))
        .collect();
    let all = transfers.bytes(&bits.concat())?;
    let kept = |at: usize| if (at / 8) >> (at % 8) & 1 == 1 { 0.0 } else { 1.0 };
    let meaning: Vec<f32> = (0..256 * 8).map(kept).collect();
    let meaning = transfers.floats(&meaning, (256, 8))?;
    let mut masks = Vec::with_capacity(layers.len());
    let mut start = 0;
    for (bits, (_layer, columns)) in bits.iter().zip(layers) {
        masks.push(CandleDropoutMask {
            bytes: all.narrow(0, start, bits.len())?,
            meaning: meaning.clone(),
            columns: *columns,
            factor: f64::from(1.0 / (1.0 - rate)),
        });
        start += bits.len();
    }
    Ok(masks)
}

/// One layer's bits.
fn dropped_bits(draws: &[Stream], layer: u64, columns: usize, rate: f32) -> Vec<u8> {
    let mut bits = Vec::with_capacity(draws.len() * columns.div_ceil(8));
    for draw in draws {
        let draw = draw.child(layer);
        for first in (0..columns).step_by(8) {
            let mut byte = 0;
            for column in first..(first + 8).min(columns) {
                byte |= u8::from(draw.unit(column as u64) < rate) << (column - first);
            }
            bits.push(byte);
        }
    }
    bits
}

/// What `mask` leaves of `x`.
pub fn apply(x: &Tensor, mask: &CandleDropoutMask) -> Outcome<Tensor> {
    // Candle takes the largest index for "nothing here" and gives zeros: a byte whose bits all drop.
    let kept = mask.meaning.index_select(&mask.bytes, 0)?;
    let kept = kept.reshape((x.dim(0)?, ()))?.narrow(1, 0, mask.columns)?;
    Ok(((x * kept)? * mask.factor)?)
}
