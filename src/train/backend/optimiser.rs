//! The optimiser.

use super::error::Outcome;
use super::matrices::Matrices;

/// The optimiser. Every backend has it.
pub trait OptimiserOps: Matrices {
    /// Sum of the squares of all elements of all `matrices`.
    fn sum_of_squares(&self, matrices: &[&Self::Matrix]) -> Outcome<f64>;
    /// One AdamW step of `tensors`; the gradients are scaled by `gradient_factor` first.
    fn adamw(
        &self,
        tensors: Vec<ParameterUpdate<'_, Self>>,
        step: &AdamWStep,
        gradient_factor: f64,
    ) -> Outcome<()>;
}

/// A parameter that the optimiser updates.
pub struct ParameterUpdate<'a, B: Matrices> {
    /// The parameter.
    pub parameter: &'a mut B::Matrix,
    /// Its gradient.
    pub gradient: &'a B::Matrix,
    /// Adam's first moment of it.
    pub first: &'a mut B::Matrix,
    /// Adam's second moment of it.
    pub second: &'a mut B::Matrix,
}

/// One AdamW step (Loshchilov & Hutter 2019, with bias correction, as `torch.optim.AdamW`).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWStep {
    /// Learning rate of this step.
    pub learning_rate: f64,
    /// First moment's decay.
    pub beta1: f64,
    /// Second moment's decay.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Gradients are scaled by min(1, clip / (norm + 1e-6)), over all tensors that train together.
    pub clip: f64,
    /// Number of this step, from 1, for the bias correction.
    pub step: u64,
}
