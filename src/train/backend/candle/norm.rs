//! What norms compute of their rows.

use candle_core::{D, Tensor};

use crate::train::backend::{NormKind, Outcome};

/// Rows as a norm sees them.
pub(super) struct NormRows {
    /// The rows; minus their means for layer norm.
    pub(super) centred: Tensor,
    /// 1/(variance + ε), `[rows, 1]`.
    pub(super) inverse_variance: Tensor,
    /// Its root.
    pub(super) inverse_deviation: Tensor,
}

impl NormRows {
    pub(super) fn new(x: &Tensor, kind: NormKind, epsilon: f32) -> Outcome<Self> {
        let centred = match kind {
            NormKind::Rms | NormKind::RmsOnePlus => x.clone(),
            NormKind::Layer => x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?,
        };
        let squares = centred.sqr()?.sum_keepdim(D::Minus1)?;
        let variance = squares.affine(1.0 / x.dim(D::Minus1)? as f64, f64::from(epsilon))?;
        let inverse_variance = variance.recip()?;
        let inverse_deviation = inverse_variance.sqrt()?;
        Ok(Self { centred, inverse_variance, inverse_deviation })
    }

    /// The rows divided by their deviation.
    pub(super) fn normalised(&self) -> Outcome<Tensor> {
        Ok(self.centred.broadcast_mul(&self.inverse_deviation)?)
    }
}
