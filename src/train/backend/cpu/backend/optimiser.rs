//! The AdamW optimiser.

use rayon::prelude::*;

use super::CpuBackend;
use crate::train::backend::cpu::buffer_pool::CpuMatrix;
use crate::train::backend::cpu::layers::adamw;
use crate::train::backend::cpu::vector;
use crate::train::backend::{AdamWStep, OptimiserOps, Outcome, ParameterUpdate};

/// Least tensors of an optimiser task; those of an adapter have some ten thousand elements each.
const TENSORS_PER_TASK: usize = 16;

impl OptimiserOps for CpuBackend {
    fn sum_of_squares(&self, matrices: &[&CpuMatrix]) -> Outcome<f64> {
        let of = |matrix: &&CpuMatrix| vector::sum_of_squares(self.isa, matrix.values());
        Ok(matrices.iter().map(of).sum())
    }

    fn adamw(
        &self,
        tensors: Vec<ParameterUpdate<'_, Self>>,
        step: &AdamWStep,
        gradient_factor: f64,
    ) -> Outcome<()> {
        let factors = adamw::AdamWFactors::new(step, gradient_factor);
        tensors.into_par_iter().with_min_len(TENSORS_PER_TASK).for_each(|tensor| {
            let ParameterUpdate { parameter, gradient, first, second } = tensor;
            adamw::update(
                self.isa,
                parameter.values_mut(),
                gradient.values(),
                first.values_mut(),
                second.values_mut(),
                &factors,
            );
        });
        Ok(())
    }
}
