//! Linear layers and the products with their weights.

use candle_core::{DType, Tensor};

use crate::train::backend::Outcome;

/// A linear layer: `[outputs, inputs]` and its bias.
pub struct CandleWeight {
    pub(super) weight: Tensor,
    pub(super) bias: Option<Tensor>,
}

impl CandleWeight {
    /// x · Wᵀ + bias.
    pub(super) fn forward(&self, x: &Tensor) -> Outcome<Tensor> {
        let y = multiply(x, &self.weight.t()?)?;
        match &self.bias {
            Some(bias) => Ok(y.broadcast_add(bias)?),
            None => Ok(y),
        }
    }
}

/// x · `right` in the precision of `right`, as 32-bit floats.
pub(super) fn multiply(x: &Tensor, right: &Tensor) -> Outcome<Tensor> {
    match right.dtype() {
        DType::F32 => Ok(x.matmul(right)?),
        narrow => Ok(x.to_dtype(narrow)?.matmul(right)?.to_dtype(DType::F32)?),
    }
}

/// cap · tanh(logits / cap), where there is a cap.
pub(super) fn soft_capped(logits: Tensor, soft_cap: Option<f32>) -> Outcome<Tensor> {
    match soft_cap {
        Some(cap) => Ok(((logits / f64::from(cap))?.tanh()? * f64::from(cap))?),
        None => Ok(logits),
    }
}
