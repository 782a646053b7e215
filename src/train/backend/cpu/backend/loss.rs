//! Cross entropy of the language model head, a chunk of rows at a time.

use super::{CpuBackend, HEAD_CHUNK};
use crate::train::backend::cpu::buffer_pool::CpuMatrix;
use crate::train::backend::cpu::gemm::weight::CpuWeight;
use crate::train::backend::cpu::layers::cross_entropy;
use crate::train::backend::cpu::layers::linear::MatrixView;
use crate::train::backend::cpu::vector;
use crate::train::backend::{LossOps, Outcome, RowLoss};

impl LossOps for CpuBackend {
    type Losses = Vec<RowLoss>;

    fn head_loss(
        &self,
        x: &CpuMatrix,
        head: &CpuWeight,
        targets: &Vec<u32>,
        soft_cap: Option<f32>,
        factors: Option<&[f32]>,
    ) -> Outcome<(Vec<RowLoss>, Option<CpuMatrix>)> {
        let mut losses = vec![RowLoss::default(); targets.len()];
        let mut gradient = factors.map(|_| self.pool.acquire(x.rows(), x.columns()));
        for first in (0..targets.len()).step_by(HEAD_CHUNK) {
            let rows = (targets.len() - first).min(HEAD_CHUNK);
            let columns = x.columns();
            let chunk =
                MatrixView { values: &x.values()[first * columns..][..rows * columns], columns };
            let mut logits = self.pool.acquire(rows, head.forward.outputs);
            self.multiply(chunk, &head.forward, logits.values_mut());
            let mut scales = self.pool.acquire(1, rows);
            let backward = factors.map(|factors| cross_entropy::Backward {
                factors: &factors[first..first + rows],
                scales: scales.values_mut(),
            });
            cross_entropy::cross_entropy(
                self.isa,
                logits.values_mut(),
                &targets[first..first + rows],
                soft_cap,
                backward,
                &mut losses[first..first + rows],
            );
            if let (Some(gradient), Some(packed)) = (&mut gradient, &head.backward) {
                let into = &mut gradient.values_mut()[first * columns..][..rows * columns];
                let logits = MatrixView { values: logits.values(), columns: logits.columns() };
                self.multiply(logits, packed, into);
                for (row, scale) in into.chunks_exact_mut(columns).zip(scales.values()) {
                    vector::scale(self.isa, row, *scale);
                }
            }
        }
        Ok((losses, gradient))
    }

    fn row_losses(&self, losses: &Vec<RowLoss>) -> Outcome<Vec<RowLoss>> {
        Ok(losses.clone())
    }
}
