//! Layers, forward and backward.

use candle_core::{D, DType, Tensor};
use candle_nn::rotary_emb::rope_thd;

use super::dropout::{self, CandleDropoutMask};
use super::norm::NormRows;
use super::weight::{CandleWeight, RoundedOperand, multiply};
use super::{CandleBackend, activation};
use crate::train::backend::{
    Activation, LayerOps, LoraLinear, LoraOutput, LoraPair, Matrices, Norm, NormKind, Outcome,
    RopeTable,
};
use crate::train::rng::Stream;

impl LayerOps for CandleBackend {
    type DropoutMask = CandleDropoutMask;

    fn embed(&self, table: &CandleWeight, ids: &Tensor, scale: f32) -> Outcome<Tensor> {
        let rows = self.gather_rows(&table.weight, ids)?.to_dtype(DType::F32)?;
        match scale {
            1.0 => Ok(rows),
            scale => Ok((rows * f64::from(scale))?),
        }
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
        // The factor goes on the smaller side of the product.
        *y = (&*y + (&inner * f64::from(scale))?.matmul(&pair.b.t()?)?)?;
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

    fn linears<const COUNT: usize>(
        &self,
        x: &Tensor,
        layers: [LoraLinear<'_, Self>; COUNT],
        scale: f32,
    ) -> [Outcome<LoraOutput<Self>>; COUNT] {
        let mut rounded = RoundedOperand::new(x);
        layers.map(|layer| {
            let mut y = layer.weight.forward_rounded(&mut rounded)?;
            let inner = match layer.pair {
                Some(pair) => Some(self.lora(x, pair, scale, &mut y)?),
                None => None,
            };
            Ok((y, inner))
        })
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
        let y = match (norm.kind, &norm.bias) {
            (NormKind::Rms | NormKind::RmsOnePlus, None) => {
                candle_nn::ops::rms_norm(&x, &norm.weight, norm.epsilon)?
            }
            // Candle's layer norm subtracts the square of the mean from the mean of the squares, which loses what
            // is left where the mean is large.
            (_, bias) => {
                let rows = NormRows::new(&x, norm.kind, norm.epsilon)?;
                let y = rows.normalised()?.broadcast_mul(&norm.weight)?;
                match bias {
                    Some(bias) => y.broadcast_add(bias)?,
                    None => y,
                }
            }
        };
        Ok(y.reshape(dims)?)
    }

    fn norm_backward(&self, gradient: Tensor, x: &Tensor, norm: &Norm<Self>) -> Outcome<Tensor> {
        let dims = x.dims2()?;
        let x = x.reshape(((), norm.width))?;
        let NormRows { centred, inverse_variance, inverse_deviation } =
            NormRows::new(&x, norm.kind, norm.epsilon)?;
        let gradient = gradient.reshape(((), norm.width))?.broadcast_mul(&norm.weight)?;
        let along = (&gradient * &centred)?.mean_keepdim(D::Minus1)?.mul(&inverse_variance)?;
        let mut made = (&gradient - centred.broadcast_mul(&along)?)?;
        if norm.kind == NormKind::Layer {
            made = made.broadcast_sub(&gradient.mean_keepdim(D::Minus1)?)?;
        }
        Ok(made.broadcast_mul(&inverse_deviation)?.reshape(dims)?)
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
        let (tokens, width) = x.dims2()?;
        let heads = x.reshape((1, tokens, width / head_dim, head_dim))?;
        let [cos, sin] = self.rotations.of([&table.cos, &table.sin], positions, backward)?;
        let turning = 2 * table.half;
        let turned = match head_dim - turning {
            0 => rope_thd(&heads.contiguous()?, &cos, &sin)?,
            rest => {
                let first = heads.narrow(D::Minus1, 0, turning)?.contiguous()?;
                let rest = heads.narrow(D::Minus1, turning, rest)?;
                Tensor::cat(&[rope_thd(&first, &cos, &sin)?, rest], D::Minus1)?
            }
        };
        *x = turned.reshape((tokens, width))?;
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
