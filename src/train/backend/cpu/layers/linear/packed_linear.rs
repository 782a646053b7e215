//! Operands of linear layers: packed weights with their LoRA pairs, inputs and outputs.

use std::sync::Arc;

use crate::train::backend::cpu::buffer_pool::{BufferPool, CpuMatrix};
use crate::train::backend::cpu::gemm::packed_element::packed_len;
use crate::train::backend::cpu::gemm::packed_matrix::PackedMatrix;
use crate::train::backend::cpu::isa::Isa;
use crate::train::backend::cpu::vector;

/// Most layers that share an input: queries, keys and values.
pub const MAX_LAYERS: usize = 3;

/// A LoRA pair packed for products, with its scale in B.
pub struct PackedLora {
    /// Projects rows down to the rank: A forward, Bᵀ backward.
    pub(in super::super) down: PackedMatrix,
    /// Projects them up to the result: B forward, Aᵀ backward.
    pub(in super::super) up: PackedMatrix,
}

impl PackedLora {
    /// Packs A of `[rank, inputs]` and B of `[outputs, rank]` for the forward pass.
    pub fn forward(
        isa: Isa,
        pool: &Arc<BufferPool>,
        a: &CpuMatrix,
        b: &CpuMatrix,
        scale: f32,
    ) -> Self {
        let b = scaled(isa, pool, b, scale);
        Self {
            down: PackedMatrix::pack_temporary(isa, pool, a),
            up: PackedMatrix::pack_temporary(isa, pool, &b),
        }
    }

    /// Packs them for the backward pass.
    pub fn backward(
        isa: Isa,
        pool: &Arc<BufferPool>,
        a: &CpuMatrix,
        b: &CpuMatrix,
        scale: f32,
    ) -> Self {
        let b = scaled(isa, pool, b, scale);
        Self {
            down: PackedMatrix::pack_transposed_temporary(isa, pool, &b),
            up: PackedMatrix::pack_transposed_temporary(isa, pool, a),
        }
    }

    /// Bytes of memory that it uses.
    pub fn memory_use(&self) -> u64 {
        self.down.memory_use() + self.up.memory_use()
    }
}

fn scaled(isa: Isa, pool: &Arc<BufferPool>, matrix: &CpuMatrix, factor: f32) -> CpuMatrix {
    let mut made = pool.acquire(matrix.rows(), matrix.columns());
    made.values_mut().copy_from_slice(matrix.values());
    vector::scale(isa, made.values_mut(), factor);
    made
}

/// A linear layer with its LoRA pair, packed.
pub struct PackedLinear<'a> {
    /// `None` where only the pair is applied.
    pub weight: Option<&'a PackedMatrix>,
    /// Added to each row of the result.
    pub bias: Option<&'a [f32]>,
    /// Its LoRA pair.
    pub pair: Option<PackedLora>,
}

impl PackedLinear<'_> {
    /// A layer without weight and pair.
    pub const EMPTY: Self = Self { weight: None, bias: None, pair: None };

    /// The matrix that decides on the shape of the result.
    fn last(&self) -> Option<&PackedMatrix> {
        self.weight.or(self.pair.as_ref().map(|pair| &pair.up))
    }

    pub(super) fn outputs(&self) -> usize {
        self.last().map_or(0, |packed| packed.outputs)
    }

    pub(super) fn panels(&self) -> usize {
        self.last().map_or(0, PackedMatrix::panels)
    }

    /// Packed elements of a row of the pair's inner activations x · aᵀ.
    pub(super) fn inner_len(&self, isa: Isa) -> usize {
        self.pair.as_ref().map_or(0, |pair| packed_len(isa, pair.down.outputs))
    }
}

/// A matrix of floats that a product reads.
#[derive(Clone, Copy)]
pub struct MatrixView<'a> {
    /// Row-major.
    pub values: &'a [f32],
    /// Length of a row.
    pub columns: usize,
}

impl MatrixView<'_> {
    /// Packed elements that a task makes of a row: none where the kernels multiply f32.
    pub(super) fn packed_row_len(&self, isa: Isa) -> usize {
        if isa == Isa::Bf16 { packed_len(isa, self.columns) } else { 0 }
    }
}

/// Where the results of a layer go.
pub struct LinearOutput<'a> {
    /// The layer's output.
    pub y: &'a mut [f32],
    /// x · aᵀ; empty without a pair.
    pub inner: &'a mut [f32],
}
