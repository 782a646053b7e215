//! The CPU backend: one file for each group of operations.

mod attention;
mod decoding;
mod layers;
mod loss;
mod matrices;
mod optimiser;

use std::sync::Arc;

use super::attention::kv_cache::{CpuKvCache, PageMemory};
use super::buffer_pool::{BufferPool, CpuMatrix};
use super::gemm::packed_matrix::PackedMatrix;
use super::gemm::tile::AccumulateMode;
use super::gemm::weight::CpuWeight;
use super::isa::Isa;
use super::layers::linear::{self, LinearOutput, MatrixView, PackedLinear, PackedLora};
use crate::train::backend::{
    AttentionShape, BackendError, LoraPair, Matrices, Outcome, WeightTrainingOps,
};

/// Rows of logits in memory at once: 256 of 49,152 are 50 MB.
pub const HEAD_CHUNK: usize = 256;

/// The CPU, on the threads of rayon's pool.
pub struct CpuBackend {
    isa: Isa,
    pool: Arc<BufferPool>,
    page_memory: Arc<PageMemory>,
    /// Whether weights for inference are rounded to bf16 also where the kernels multiply f32.
    round_to_bf16: bool,
}

impl CpuBackend {
    /// A backend on a level of instructions, or on the best one that this CPU has where that is lower.
    pub fn new(isa: Isa) -> Self {
        let isa = isa.min(Isa::best());
        let (pool, page_memory) =
            (Arc::new(BufferPool::default()), Arc::new(PageMemory::default()));
        Self { isa, pool, page_memory, round_to_bf16: false }
    }

    /// The same with weights for inference in bf16 on every level of instructions.
    pub fn with_bf16_weights(isa: Isa) -> Self {
        Self { round_to_bf16: true, ..Self::new(isa) }
    }

    /// Bytes of the pages of all KV caches.
    pub fn cached_bytes(&self) -> u64 {
        self.page_memory.bytes()
    }

    /// Bytes of one page of a sequence's KV cache.
    pub fn page_bytes(&self, layers: usize, shape: &AttentionShape) -> u64 {
        CpuKvCache::page_bytes(self.isa, layers, shape)
    }

    /// `result = x · packedᵀ`.
    fn multiply(&self, x: MatrixView<'_>, packed: &PackedMatrix, result: &mut [f32]) {
        let layers = [PackedLinear { weight: Some(packed), bias: None, pair: None }];
        let mut results = [LinearOutput { y: result, inner: &mut [] }];
        linear::forward(self.isa, x, &layers, AccumulateMode::Overwrite, &mut results);
    }

    fn forward_pair(&self, pair: &LoraPair<Self>, scale: f32) -> PackedLora {
        PackedLora::forward(self.isa, &self.pool, &pair.a, &pair.b, scale)
    }

    fn backward_pair(&self, pair: &LoraPair<Self>, scale: f32) -> PackedLora {
        PackedLora::backward(self.isa, &self.pool, &pair.a, &pair.b, scale)
    }

    /// Wᵀ, for the backward pass.
    fn transposed<'a>(&self, weight: &'a CpuWeight) -> Outcome<&'a PackedMatrix> {
        weight.backward.as_ref().ok_or_else(|| BackendError::Backend {
            backend: self.name(),
            reason: "the model was loaded for inference, not for training".to_owned(),
        })
    }

    fn filled(&self, rows: usize, columns: usize, value: f32) -> CpuMatrix {
        let mut filled = self.pool.acquire(rows, columns);
        filled.values_mut().fill(value);
        filled
    }
}

/// The CPU trains LoRA adapters only.
impl WeightTrainingOps for CpuBackend {}

/// A view of all rows.
fn rows(matrix: &CpuMatrix) -> MatrixView<'_> {
    MatrixView { values: matrix.values(), columns: matrix.columns() }
}
