//! Attention over packed batches.

use super::CpuBackend;
use crate::train::backend::cpu::attention::backward::{self, AttentionGradients, ForwardResult};
use crate::train::backend::cpu::attention::{self, AttentionInputs};
use crate::train::backend::cpu::buffer_pool::CpuMatrix;
use crate::train::backend::{AttentionOps, AttentionShape, Outcome, Segment};

impl AttentionOps for CpuBackend {
    fn attention(
        &self,
        queries: &CpuMatrix,
        keys: &CpuMatrix,
        values: &CpuMatrix,
        segments: &[Segment],
        shape: &AttentionShape,
    ) -> Outcome<(CpuMatrix, CpuMatrix)> {
        let mut output = self.pool.acquire(queries.rows(), queries.columns());
        let mut log_sums = self.pool.acquire(shape.heads, queries.rows());
        let (queries, keys, values) = (queries.values(), keys.values(), values.values());
        let inputs = AttentionInputs { queries, keys, values };
        let (into, sums) = (output.values_mut(), log_sums.values_mut());
        attention::forward::forward(self.isa, &self.pool, &inputs, segments, shape, into, sums);
        Ok((output, log_sums))
    }

    fn attention_backward(
        &self,
        gradient: &CpuMatrix,
        queries: &CpuMatrix,
        keys: &CpuMatrix,
        values: &CpuMatrix,
        output: &CpuMatrix,
        saved: &CpuMatrix,
        segments: &[Segment],
        shape: &AttentionShape,
    ) -> Outcome<[CpuMatrix; 3]> {
        let mut made = [queries, keys, values]
            .map(|matrix| self.pool.acquire(matrix.rows(), matrix.columns()));
        let inputs = AttentionInputs {
            queries: queries.values(),
            keys: keys.values(),
            values: values.values(),
        };
        let [query_gradient, key_gradient, value_gradient] = &mut made;
        let gradients = AttentionGradients {
            queries: query_gradient.values_mut(),
            keys: key_gradient.values_mut(),
            values: value_gradient.values_mut(),
        };
        let made_forward = ForwardResult {
            output: output.values(),
            log_sums: saved.values(),
            gradient: gradient.values(),
        };
        backward::backward(self.isa, &self.pool, &inputs, segments, shape, made_forward, gradients);
        Ok(made)
    }
}
