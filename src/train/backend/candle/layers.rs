//! Layers, forward and backward.

use candle_core::{D, DType, Tensor};

use super::dropout::{self, CandleDropoutMask};
use super::norm::statistics;
use super::weight::{CandleWeight, multiply};
use super::{CandleBackend, activation};
use crate::train::backend::{
    Activation, LayerOps, LoraPair, Matrices, Norm, NormKind, Outcome, RopeTable,
};
use crate::train::rng::Stream;

impl LayerOps for CandleBackend {
    type DropoutMask = CandleDropoutMask;

    fn embed(&self, table: &CandleWeight, ids: &Tensor, scale: f32) -> Outcome<Tensor> {
        let rows = self.gather_rows(&table.weight, ids)?.to_dtype(DType::F32)?;
        Ok((rows * f64::from(scale))?)
    }

    fn linear(&self, x: &Tensor, weight: &CandleWeight) -> Outcome<Tensor> {
        weight.forward(x)
    }

    fn linear_backward(
        &self,
        gradient: &Tensor,
        weight: &CandleWeight,
        into: Option<Tensor>,
    ) -> Outcome<Tensor> {
        let made = multiply(gradient, &weight.weight)?;
        match into {
            Some(into) => Ok((into + made)?),
            None => Ok(made),
        }
    }

    fn lora(
        &self,
        x: &Tensor,
        pair: &LoraPair<Self>,
        scale: f32,
        y: &mut Tensor,
    ) -> Outcome<Tensor> {
        let inner = x.matmul(&pair.a.t()?)?;
        *y = (&*y + (inner.matmul(&pair.b.t()?)? * f64::from(scale))?)?;
        Ok(inner)
    }

    fn lora_backward(
        &self,
        gradient: &Tensor,
        x: &Tensor,
        inner: &Tensor,
        pair: &LoraPair<Self>,
        scale: f32,
        gradients: &mut LoraPair<Self>,
        into: Option<&mut Tensor>,
    ) -> Outcome<()> {
        let scale = f64::from(scale);
        gradients.b = (&gradients.b + (gradient.t()?.matmul(inner)? * scale)?)?;
        let inner_gradient = (gradient.matmul(&pair.b)? * scale)?;
        gradients.a = (&gradients.a + inner_gradient.t()?.matmul(x)?)?;
        if let Some(into) = into {
            *into = (&*into + inner_gradient.matmul(&pair.a)?)?;
        }
        Ok(())
    }

    fn dropout_masks(
        &self,
        draws: &[Stream],
        layers: &[(u64, usize)],
        rate: f32,
    ) -> Outcome<Vec<CandleDropoutMask>> {
        dropout::dropout_masks(&self.transfers, draws, layers, rate)
    }

    fn apply_dropout(&self, x: &Tensor, mask: &CandleDropoutMask) -> Outcome<Tensor> {
        dropout::apply(x, mask)
    }

    fn norm(&self, x: &Tensor, norm: &Norm<Self>) -> Outcome<Tensor> {
        let dims = x.dims2()?;
        let x = x.reshape(((), norm.width))?;
        let (mean, inverse) = statistics(&x, norm.kind == NormKind::Layer, norm.epsilon)?;
        let y = x.broadcast_sub(&mean)?.broadcast_mul(&inverse)?.broadcast_mul(&norm.weight)?;
        let y = match &norm.bias {
            Some(bias) => y.broadcast_add(bias)?,
            None => y,
        };
        Ok(y.reshape(dims)?)
    }

    fn norm_backward(&self, gradient: Tensor, x: &Tensor, norm: &Norm<Self>) -> Outcome<Tensor> {
        let dims = x.dims2()?;
        let x = x.reshape(((), norm.width))?;
        let (mean, inverse) = statistics(&x, norm.kind == NormKind::Layer, norm.epsilon)?;
        let normalised = x.broadcast_sub(&mean)?.broadcast_mul(&inverse)?;
        let gradient = gradient.reshape(((), norm.width))?.broadcast_mul(&norm.weight)?;
        let along = (&gradient * &normalised)?.mean_keepdim(D::Minus1)?;
        let mut made = (&gradient - normalised.broadcast_mul(&along)?)?;
        if norm.kind == NormKind::Layer {
            made = made.broadcast_sub(&gradient.mean_keepdim(D::Minus1)?)?;
        }
        Ok(made.broadcast_mul(&inverse)?.reshape(dims)?)
    }

    fn rotate(
        &self,
        x: &mut Tensor,
        head_dim: usize,
        table: &RopeTable<Self>,
        positions: &Tensor,
        backward: bool,
    ) -> Outcome<()> {
        if table.half == 0 {
            return Ok(());
        }
        let dims = x.dims2()?;
        let heads = x.reshape((dims.0, dims.1 / head_dim, head_dim))?;
        let cos = self.gather_rows(&table.cos, positions)?.unsqueeze(1)?;
        let mut sin = self.gather_rows(&table.sin, positions)?.unsqueeze(1)?;
        if backward {
            sin = sin.neg()?;
        }
        let low = heads.narrow(2, 0, table.half)?;
        let high = heads.narrow(2, table.half, table.half)?;
        let new_low = (low.broadcast_mul(&cos)? - high.broadcast_mul(&sin)?)?;
        let new_high = (high.broadcast_mul(&cos)? + low.broadcast_mul(&sin)?)?;
        let rest = head_dim - 2 * table.half;
        let turned = match rest {
            0 => Tensor::cat(&[new_low, new_high], 2)?,
            _ => Tensor::cat(&[new_low, new_high, heads.narrow(2, 2 * table.half, rest)?], 2)?,
        };
        *x = turned.reshape(dims)?;
        Ok(())
    }

    fn activate(
        &self,
        activation: Activation,
        gate: &Tensor,
        up: Option<&Tensor>,
    ) -> Outcome<Tensor> {
        let value = activation::value(activation, gate)?;
        match up {
            Some(up) => Ok((value * up)?),
            None => Ok(value),
        }
    }

    fn activate_backward(
        &self,
        activation: Activation,
        gate: Tensor,
        up: Option<Tensor>,
        gradient: &Tensor,
    ) -> Outcome<(Tensor, Option<Tensor>)> {
        let (value, derivative) = activation::value_and_derivative(activation, &gate)?;
        let Some(up) = up else {
            return Ok(((gradient * derivative)?, None));
        };
        let gate_gradient = ((gradient * up)? * derivative)?;
        Ok((gate_gradient, Some((gradient * value)?)))
    }
}
