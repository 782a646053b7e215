//! Cross entropy of the language model head.

use super::error::Outcome;
use super::matrices::Matrices;

/// The loss of the language model head. Every backend has it.
pub trait LossOps: Matrices {
    /// Losses of rows, on the device until [`LossOps::row_losses`] reads them.
    type Losses: Send;

    /// Cross entropy of x · Wᵀ against `targets`, row by row; with `factors` also the gradient of
    /// Σ factors\[row\] · loss\[row\] with respect to x. Logits are computed a chunk at a time.
    fn head_loss(
        &self,
        x: &Self::Matrix,
        head: &Self::Weight,
        targets: &Self::Indexes,
        soft_cap: Option<f32>,
        factors: Option<&[f32]>,
    ) -> Outcome<(Self::Losses, Option<Self::Matrix>)>;
    /// The losses, for the host: waits until the device has computed them.
    fn row_losses(&self, losses: &Self::Losses) -> Outcome<Vec<RowLoss>>;
}

/// The loss of one row of logits.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct RowLoss {
    /// Cross entropy in nats.
    pub loss: f32,
    /// Whether the target has the largest logit.
    pub correct: bool,
}
