//! The AdamW optimiser.

use candle_core::Tensor;

use super::CandleBackend;
use crate::train::backend::{AdamWStep, OptimiserOps, Outcome, ParameterUpdate};

impl OptimiserOps for CandleBackend {
    fn sum_of_squares(&self, matrices: &[&Tensor]) -> Outcome<f64> {
        let mut sums = Vec::with_capacity(matrices.len());
        for matrix in matrices {
            sums.push(matrix.sqr()?.sum_all()?);
        }
        let sums = self.transfers.read(&Tensor::stack(&sums, 0)?)?;
        Ok(sums.iter().map(|sum| f64::from(*sum)).sum())
    }

    fn adamw(
        &self,
        tensors: Vec<ParameterUpdate<'_, Self>>,
        step: &AdamWStep,
        gradient_factor: f64,
    ) -> Outcome<()> {
        let correction1 = 1.0 - step.beta1.powf(step.step as f64);
        let correction2 = 1.0 - step.beta2.powf(step.step as f64);
        for ParameterUpdate { parameter, gradient, first, second } in tensors {
            // The factors of the gradient are put together: each would be a kernel of its own.
            let of_first = gradient_factor * (1.0 - step.beta1);
            let of_second = gradient_factor.powi(2) * (1.0 - step.beta2);
            *first = ((&*first * step.beta1)? + (gradient * of_first)?)?;
            *second = ((&*second * step.beta2)? + (gradient.sqr()? * of_second)?)?;
            let denominator = second.sqrt()?.affine(1.0 / correction2.sqrt(), step.epsilon)?;
            let update = ((&*first / denominator)? * (step.learning_rate / correction1))?;
            let kept = (&*parameter * (1.0 - step.learning_rate * step.weight_decay))?;
            *parameter = (kept - update)?;
        }
        Ok(())
    }
}
