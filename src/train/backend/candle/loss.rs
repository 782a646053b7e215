//! Cross entropy of the language model head.

use candle_core::Tensor;

use super::CandleBackend;
use super::cross_entropy;
use super::weight::CandleWeight;
use crate::train::backend::{LossOps, Outcome, RowLoss};

impl LossOps for CandleBackend {
    type Losses = Tensor;

    fn head_loss(
        &self,
        x: &Tensor,
        head: &CandleWeight,
        targets: &Tensor,
        soft_cap: Option<f32>,
        factors: Option<&[f32]>,
    ) -> Outcome<(Tensor, Option<Tensor>)> {
        let device = (&self.transfers, self.head_rows);
        cross_entropy::head_loss(device, x, head, targets, soft_cap, factors, None)
    }

    fn row_losses(&self, losses: &Tensor) -> Outcome<Vec<RowLoss>> {
        cross_entropy::read(&self.transfers, losses)
    }
}
