//! The weight of a linear layer, packed for training or for inference.

use std::sync::Arc;

use rayon::prelude::*;

use super::packed_matrix::PackedMatrix;
use crate::train::backend::cpu::buffer_pool::BufferPool;
use crate::train::backend::cpu::isa::Isa;

/// W of `[outputs, inputs]`, packed for the forward pass, and Wᵀ for the backward pass.
pub struct CpuWeight {
    /// W.
    pub(in crate::train::backend::cpu) forward: PackedMatrix,
    /// Wᵀ, where gradients flow through the layer.
    pub(in crate::train::backend::cpu) backward: Option<PackedMatrix>,
    /// Added to each row of the result.
    pub(in crate::train::backend::cpu) bias: Option<Vec<f32>>,
}

impl CpuWeight {
    /// Packs a weight for forward and backward passes.
    pub fn for_training(
        isa: Isa,
        pool: &Arc<BufferPool>,
        values: &[f32],
        outputs: usize,
        inputs: usize,
    ) -> Self {
        let forward = PackedMatrix::pack(isa, pool, values, outputs, inputs);
        let backward = Some(PackedMatrix::pack_transposed(isa, pool, values, inputs, outputs));
        Self { forward, backward, bias: None }
    }

    /// Packs W alone, in bf16 where that changes no product. With `round_to_bf16` it is rounded to bf16 also
    /// where the kernels multiply f32.
    pub fn for_inference(
        isa: Isa,
        pool: &Arc<BufferPool>,
        values: &[f32],
        outputs: usize,
        inputs: usize,
        round_to_bf16: bool,
    ) -> Self {
        let rounded: Vec<f32>;
        let values = if round_to_bf16 {
            let round = |value: &f32| half::bf16::from_f32(*value).to_f32();
            rounded = values.par_iter().map(round).collect();
            &rounded
        } else {
            values
        };
        let forward = PackedMatrix::pack_in_bf16(isa, pool, values, outputs, inputs)
            .unwrap_or_else(|| PackedMatrix::pack(isa, pool, values, outputs, inputs));
        Self { forward, backward: None, bias: None }
    }

    /// Most bytes that a weight of this size uses; with `backward` for training.
    pub fn bytes(isa: Isa, outputs: usize, inputs: usize, backward: bool) -> u64 {
        let back = if backward { PackedMatrix::bytes(isa, inputs, outputs) } else { 0 };
        PackedMatrix::bytes(isa, outputs, inputs) + back
    }

    /// Bytes of memory that it uses.
    pub fn memory_use(&self) -> u64 {
        self.forward.memory_use() + self.backward.as_ref().map_or(0, PackedMatrix::memory_use)
    }
}
