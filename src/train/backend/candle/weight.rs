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
        self.forward_rounded(&mut RoundedOperand::new(x))
    }

    /// The same for an x that several layers read.
    pub(super) fn forward_rounded(&self, x: &mut RoundedOperand<'_>) -> Outcome<Tensor> {
        let y = x.to(self.weight.dtype())?.matmul(&self.weight.t()?)?.to_dtype(DType::F32)?;
        match &self.bias {
            Some(bias) => Ok(y.broadcast_add(bias)?),
            None => Ok(y),
        }
    }
}

/// The left operand of several products: it is rounded to their precision once.
pub(super) struct RoundedOperand<'a> {
    x: &'a Tensor,
    rounded: Option<Tensor>,
}

impl<'a> RoundedOperand<'a> {
    pub(super) fn new(x: &'a Tensor) -> Self {
        Self { x, rounded: None }
    }

    fn to(&mut self, precision: DType) -> Outcome<&Tensor> {
        let known = self.rounded.take().filter(|known| known.dtype() == precision);
        let rounded = match known {
            Some(known) => known,
            None => self.x.to_dtype(precision)?,
        };
        Ok(self.rounded.insert(rounded))
    }
}

/// x · `right` in the precision of `right`, as 32-bit floats.
pub(super) fn multiply(x: &Tensor, right: &Tensor) -> Outcome<Tensor> {
    // In 32 bits neither conversion does anything.
    Ok(x.to_dtype(right.dtype())?.matmul(right)?.to_dtype(DType::F32)?)
}

/// cap · tanh(logits / cap), where there is a cap.
pub(super) fn soft_capped(logits: Tensor, soft_cap: Option<f32>) -> Outcome<Tensor> {
    match soft_cap {
        Some(cap) => Ok(((logits / f64::from(cap))?.tanh()? * f64::from(cap))?),
        None => Ok(logits),
    }
}
