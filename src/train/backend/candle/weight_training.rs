//! Training of the model's own weights.

use candle_core::Tensor;

use super::CandleBackend;
use super::cross_entropy;
use super::norm::NormRows;
use super::weight::CandleWeight;
use crate::train::backend::{Norm, Outcome, WeightTrainingOps};

impl WeightTrainingOps for CandleBackend {
    fn trains_weights(&self) -> bool {
        true
    }

    fn weight_gradient(&self, gradient: &Tensor, x: &Tensor, into: &mut Tensor) -> Outcome<()> {
        *into = (&*into + gradient.t()?.matmul(x)?)?;
        Ok(())
    }

    fn bias_gradient(&self, gradient: &Tensor, into: &mut Tensor) -> Outcome<()> {
        let rows = gradient.reshape(((), into.dim(1)?))?;
        *into = (&*into + rows.sum_keepdim(0)?)?;
        Ok(())
    }

    fn norm_weight_gradient(
        &self,
        gradient: &Tensor,
        x: &Tensor,
        norm: &Norm<Self>,
        into: &mut Tensor,
    ) -> Outcome<()> {
        let x = x.reshape(((), norm.width))?;
        let normalised = NormRows::new(&x, norm.kind, norm.epsilon)?.normalised()?;
        let gradient = gradient.reshape(((), norm.width))?;
        *into = (&*into + (gradient * normalised)?.sum_keepdim(0)?)?;
        Ok(())
    }

    fn embed_gradient(
        &self,
        gradient: &Tensor,
        ids: &Tensor,
        scale: f32,
        into: &mut Tensor,
    ) -> Outcome<()> {
        let rows = (gradient * f64::from(scale))?.contiguous()?;
        *into = into.index_add(ids, &rows, 0)?;
        Ok(())
    }

    fn head_loss_and_gradient(
        &self,
        x: &Tensor,
        head: &CandleWeight,
        targets: &Tensor,
        soft_cap: Option<f32>,
        factors: &[f32],
        into: &mut Tensor,
    ) -> Outcome<(Tensor, Option<Tensor>)> {
        let factors = Some(factors);
        let device = (&self.transfers, self.head_rows);
        cross_entropy::head_loss(device, x, head, targets, soft_cap, factors, Some(into))
    }

    fn replace_weight(
        &self,
        weight: &mut CandleWeight,
        values: Option<&Tensor>,
        bias: Option<&Tensor>,
    ) -> Outcome<()> {
        // In the same precision they are shared, not copied: tensors are immutable.
        if let Some(values) = values {
            weight.weight = values.to_dtype(self.precision)?;
        }
        if let Some(bias) = bias {
            weight.bias = Some(bias.flatten_all()?);
        }
        Ok(())
    }

    fn vector_from(&self, row: &Tensor, plus: f32) -> Outcome<Tensor> {
        Ok((row.flatten_all()? + f64::from(plus))?)
    }
}
