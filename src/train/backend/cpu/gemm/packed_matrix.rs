//! Matrices packed for products: weights once when they are loaded, LoRA matrices once a pass.

use std::sync::Arc;

use rayon::prelude::*;

use super::packed_element::{pack_k_pair, pack_row, packed_len, unpack, values_per_element};
use super::tile::LANES;
use crate::train::backend::cpu::buffer_pool::{BufferPool, CpuMatrix};
use crate::train::backend::cpu::isa::Isa;

/// Most columns of a panel: three vectors, which with eight rows make 24 accumulators of 32 registers.
pub const PANEL: usize = 3 * LANES;

/// PackedMatrix elements that are worth a task of their own.
const MIN_TASK_ELEMENTS: usize = 64 * 1024;

/// A matrix W of `[outputs, inputs]`, packed for products `x · Wᵀ`: panels of outputs, k-major within a
/// panel, zeros after the last output.
pub struct PackedMatrix {
    /// Columns of the product.
    pub outputs: usize,
    /// Values along k.
    pub inputs: usize,
    isa: Isa,
    /// Whether the elements are bf16 pairs although the kernels multiply f32.
    is_stored_in_bf16: bool,
    /// Columns of a panel.
    width: usize,
    elements: CpuMatrix,
}

impl PackedMatrix {
    /// Packs `values` of `[outputs, inputs]`, for as long as the model is loaded.
    pub fn pack(
        isa: Isa,
        pool: &Arc<BufferPool>,
        values: &[f32],
        outputs: usize,
        inputs: usize,
    ) -> Self {
        let mut packed =
            Self::unfilled(isa, outputs, inputs, |count| pool.allocate_exact(1, count));
        packed.fill_from_rows(values);
        packed
    }

    /// Packs the transpose of `values`, which are `[inputs, outputs]`, for as long as the model is loaded.
    pub fn pack_transposed(
        isa: Isa,
        pool: &Arc<BufferPool>,
        values: &[f32],
        outputs: usize,
        inputs: usize,
    ) -> Self {
        let mut packed =
            Self::unfilled(isa, outputs, inputs, |count| pool.allocate_exact(1, count));
        packed.fill_from_columns(values);
        packed
    }

    /// As [`PackedMatrix::pack`] for one pass, in a buffer of the pool.
    pub fn pack_temporary(isa: Isa, pool: &Arc<BufferPool>, matrix: &CpuMatrix) -> Self {
        let (outputs, inputs) = (matrix.rows(), matrix.columns());
        let mut packed = Self::unfilled(isa, outputs, inputs, |count| pool.acquire(1, count));
        packed.fill_from_rows(matrix.values());
        packed
    }

    /// As [`PackedMatrix::pack_transposed`] for one pass, in a buffer of the pool.
    pub fn pack_transposed_temporary(isa: Isa, pool: &Arc<BufferPool>, matrix: &CpuMatrix) -> Self {
        let (inputs, outputs) = (matrix.rows(), matrix.columns());
        let mut packed = Self::unfilled(isa, outputs, inputs, |count| pool.acquire(1, count));
        packed.fill_from_columns(matrix.values());
        packed
    }

    /// A matrix whose elements are yet to be filled; `allocate` makes room for so many.
    fn unfilled(
        isa: Isa,
        outputs: usize,
        inputs: usize,
        allocate: impl FnOnce(usize) -> CpuMatrix,
    ) -> Self {
        let (width, count) = size(isa, outputs, inputs);
        let elements = allocate(count);
        Self { outputs, inputs, isa, is_stored_in_bf16: false, width, elements }
    }

    /// As [`PackedMatrix::pack`] for kernels that multiply f32, in half the memory. No product changes:
    /// `None` where bf16 does not hold one of the values exactly.
    pub fn pack_in_bf16(
        isa: Isa,
        pool: &Arc<BufferPool>,
        values: &[f32],
        outputs: usize,
        inputs: usize,
    ) -> Option<Self> {
        let is_exact = |values: &[f32]| values.iter().all(|value| value.to_bits() & 0xffff == 0);
        if isa == Isa::Bf16
            || !inputs.is_multiple_of(2)
            || !values.par_chunks(MIN_TASK_ELEMENTS).all(is_exact)
        {
            return None;
        }
        let allocate = |count: usize| pool.allocate_exact(1, count / 2);
        let unfilled = Self::unfilled(isa, outputs, inputs, allocate);
        let mut packed = Self { is_stored_in_bf16: true, ..unfilled };
        let width = packed.width;
        packed.each_panel(|panel, elements| {
            for column in 0..width.min(outputs - panel * width) {
                let row = &values[(panel * width + column) * inputs..][..inputs];
                for (pair, into) in
                    row.as_chunks::<2>().0.iter().zip(elements[column..].iter_mut().step_by(width))
                {
                    *into = (pair[0].to_bits() >> 16) | pair[1].to_bits();
                }
            }
        });
        Some(packed)
    }

    fn fill_from_rows(&mut self, values: &[f32]) {
        /// Elements that are packed at once.
        const PART: usize = 256;
        let Self { outputs, inputs, isa, width, .. } = *self;
        self.each_panel(|panel, elements| {
            if (panel + 1) * width > outputs {
                elements.fill(0);
            }
            let mut part = [0; PART];
            for column in 0..width.min(outputs - panel * width) {
                let row = &values[(panel * width + column) * inputs..][..inputs];
                let parts = row.chunks(PART * values_per_element(isa));
                for (row, into) in parts.zip(elements.chunks_mut(PART * width)) {
                    let count = row.len().div_ceil(values_per_element(isa));
                    pack_row(isa, row, &mut part[..count]);
                    for (k, element) in part[..count].iter().enumerate() {
                        into[k * width + column] = *element;
                    }
                }
            }
        });
    }

    fn fill_from_columns(&mut self, values: &[f32]) {
        let Self { outputs, inputs, isa, width, .. } = *self;
        let per_element = values_per_element(isa);
        self.each_panel(|panel, elements| {
            let first = panel * width;
            let columns = width.min(outputs - first);
            for (k, into) in elements.chunks_exact_mut(width).enumerate() {
                let row = |k: usize| &values[k * outputs + first..][..columns];
                let second = (per_element == 2 && 2 * k + 1 < inputs).then(|| row(2 * k + 1));
                pack_k_pair(isa, row(k * per_element), second, into);
                into[columns..].fill(0);
            }
        });
    }

    /// Calls `fill` with each panel's index and elements.
    fn each_panel(&mut self, fill: impl Fn(usize, &mut [u32]) + Sync) {
        let count = self.width * self.k_len();
        let panels = self.elements.packed_elements_mut().par_chunks_exact_mut(count.max(1));
        let at_once = (MIN_TASK_ELEMENTS / count.max(1)).max(1);
        panels
            .enumerate()
            .with_min_len(at_once)
            .for_each(|(panel, elements)| fill(panel, elements));
    }

    /// Bytes of a packed matrix.
    pub fn bytes(isa: Isa, outputs: usize, inputs: usize) -> u64 {
        (size(isa, outputs, inputs).1 * size_of::<u32>()) as u64
    }

    /// Number of panels.
    pub fn panels(&self) -> usize {
        self.outputs.div_ceil(self.width)
    }

    /// PackedMatrix elements along k.
    pub fn k_len(&self) -> usize {
        packed_len(self.layout(), self.inputs)
    }

    /// Bytes of memory that it uses.
    pub fn memory_use(&self) -> u64 {
        size_of_val(self.elements()) as u64
    }

    /// The packed elements of all panels.
    pub(super) fn elements(&self) -> &[u32] {
        self.elements.packed_elements()
    }

    /// Columns of a panel.
    pub(super) fn width(&self) -> usize {
        self.width
    }

    /// Whether the elements are bf16 pairs although the kernels multiply f32.
    pub(super) fn is_stored_in_bf16(&self) -> bool {
        self.is_stored_in_bf16
    }

    /// The level of instructions whose elements these are.
    fn layout(&self) -> Isa {
        if self.is_stored_in_bf16 { Isa::Bf16 } else { self.isa }
    }

    /// Unpacks row `output` of W.
    pub fn read_row(&self, output: usize, into: &mut [f32]) {
        let start = output / self.width * self.k_len() * self.width + output % self.width;
        unpack(self.layout(), self.elements(), start, self.width, into);
    }
}

/// Columns of a panel, and packed elements of all panels.
fn size(isa: Isa, outputs: usize, inputs: usize) -> (usize, usize) {
    // With AVX2 a tile is one vector wide: the panel's rows then lie in adjacent cache lines, which the
    // first-level cache holds.
    let max_width = if isa == Isa::Avx2 { LANES } else { PANEL };
    let width = outputs.next_multiple_of(LANES).min(max_width);
    (width, outputs.div_ceil(width.max(1)) * width * packed_len(isa, inputs))
}
