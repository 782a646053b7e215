//! Training of the model's own weights.

use super::error::{BackendError, Outcome};
use super::layers::{LayerOps, Norm};
use super::loss::LossOps;

/// Gradients and updates of the model's own weights. A backend may refuse them: the defaults do, and such a
/// backend trains LoRA adapters only.
pub trait WeightTrainingOps: LossOps + LayerOps {
    /// Whether the backend trains weights; the engine asks before it loads a model.
    fn trains_weights(&self) -> bool {
        false
    }
    /// Adds gradientᵀ · x to `into`: the gradient of a linear layer's weight, `[outputs, inputs]`.
    fn weight_gradient(
        &self,
        _gradient: &Self::Matrix,
        _x: &Self::Matrix,
        _into: &mut Self::Matrix,
    ) -> Outcome<()> {
        Err(frozen(self))
    }
    /// Adds the sum of the gradient's rows, which are as long as that of `into` (several in one row
    /// of the matrix for per-head norms): the gradient of a bias, `[1, outputs]`.
    fn bias_gradient(&self, _gradient: &Self::Matrix, _into: &mut Self::Matrix) -> Outcome<()> {
        Err(frozen(self))
    }
    /// Adds the gradient of a norm's weight, `[1, width]`, where `x` is the norm's input. It is the same for
    /// Gemma, which stores the weight minus one.
    fn norm_weight_gradient(
        &self,
        _gradient: &Self::Matrix,
        _x: &Self::Matrix,
        _norm: &Norm<Self>,
        _into: &mut Self::Matrix,
    ) -> Outcome<()> {
        Err(frozen(self))
    }
    /// Adds the gradient's rows, times `scale`, to the rows of `into` at `ids`: the backward of
    /// [`LayerOps::embed`] towards the table.
    fn embed_gradient(
        &self,
        _gradient: &Self::Matrix,
        _ids: &Self::Indexes,
        _scale: f32,
        _into: &mut Self::Matrix,
    ) -> Outcome<()> {
        Err(frozen(self))
    }
    /// As [`LossOps::head_loss`] with `factors`, and adds the gradient of the head's weight to
    /// `into`.
    fn head_loss_and_gradient(
        &self,
        _x: &Self::Matrix,
        _head: &Self::Weight,
        _targets: &Self::Indexes,
        _soft_cap: Option<f32>,
        _factors: &[f32],
        _into: &mut Self::Matrix,
    ) -> Outcome<(Self::Losses, Option<Self::Matrix>)> {
        Err(frozen(self))
    }
    /// Replaces the values of a linear layer by `values` (`[outputs, inputs]`) and of `bias`
    /// (`[1, outputs]`) where they are given.
    fn replace_weight(
        &self,
        _weight: &mut Self::Weight,
        _values: Option<&Self::Matrix>,
        _bias: Option<&Self::Matrix>,
    ) -> Outcome<()> {
        Err(frozen(self))
    }
    /// The one row of `row`, with `plus` added to each element: the weight or bias of a norm.
    fn vector_from(&self, _row: &Self::Matrix, _plus: f32) -> Outcome<Self::Vector> {
        Err(frozen(self))
    }
}

/// The error of a backend that does not train weights.
fn frozen<B: WeightTrainingOps>(backend: &B) -> BackendError {
    BackendError::FrozenWeights { backend: backend.name() }
}
