//! Statistics of normalised rows.

use candle_core::{D, Tensor};

use crate::train::backend::Outcome;

/// Mean and 1/√(variance + ε) of rows, each `[rows, 1]`; a mean of zero for RMS norm.
pub(super) fn statistics(
    x: &Tensor,
    is_layer_norm: bool,
    epsilon: f32,
) -> Outcome<(Tensor, Tensor)> {
    let mean = x.mean_keepdim(D::Minus1)?;
    let mean = if is_layer_norm { mean } else { mean.zeros_like()? };
    let variance = x.broadcast_sub(&mean)?.sqr()?.mean_keepdim(D::Minus1)?;
    let inverse = (variance + f64::from(epsilon))?.sqrt()?.recip()?;
    Ok((mean, inverse))
}
