//! The left operand of the products of linear layers, packed: their inputs, once for all layers that read
//! them, and the inner activations x · aᵀ of the layers' LoRA pairs.

use std::ops::Range;

use super::packed_linear::{MAX_LAYERS, MatrixView, PackedLinear};
use crate::train::backend::cpu::gemm::matmul::{GemmOperands, multiply_panels};
use crate::train::backend::cpu::gemm::packed_element::{pack_row, packed_len};
use crate::train::backend::cpu::gemm::tile::{
    AccumulateMode, LeftOperand, OutputRegion, SharedOutput, tile_rows,
};
use crate::train::backend::cpu::isa::Isa;
use crate::train::backend::cpu::parallel::run_in_two_phases;

/// How the left operand of a product is packed. A row has the packed elements of its inputs, one for all
/// layers or one for each, and then those of the inner activations of each LoRA pair.
pub(super) struct PackedLeft<'a> {
    isa: Isa,
    inputs: &'a [MatrixView<'a>],
    layers: &'a [PackedLinear<'a>],
    /// Where x · aᵀ of each layer is stored.
    inner: &'a [Option<SharedOutput<'a>>; MAX_LAYERS],
    /// Where the packed elements of each begin in a row.
    input_starts: [usize; MAX_LAYERS],
    inner_starts: [usize; MAX_LAYERS],
    /// Packed elements of a row.
    pub(super) row_len: usize,
}

impl<'a> PackedLeft<'a> {
    /// # Panics
    /// With more than [`MAX_LAYERS`] inputs or layers.
    pub(super) fn new(
        isa: Isa,
        inputs: &'a [MatrixView<'a>],
        layers: &'a [PackedLinear<'a>],
        inner: &'a [Option<SharedOutput<'a>>; MAX_LAYERS],
    ) -> Self {
        let (mut input_starts, mut inner_starts) = ([0; MAX_LAYERS], [0; MAX_LAYERS]);
        let mut row_len = 0;
        for (input, at) in inputs.iter().zip(&mut input_starts) {
            *at = row_len;
            row_len += input.packed_row_len(isa);
        }
        for (index, layer) in layers.iter().enumerate() {
            inner_starts[index] = row_len;
            row_len += layer.inner_len(isa);
        }
        Self { isa, inputs, layers, inner, input_starts, inner_starts, row_len }
    }

    /// Packs all rows into `packed`, and then calls `multiply` with ranges of the panels, for the products of
    /// all rows with them. Threads take both kinds of tasks from one work queue.
    ///
    /// # Safety
    /// Nothing else reads or writes `inner` meanwhile.
    pub(super) unsafe fn pack_and_multiply(
        &self,
        rows: usize,
        packed: &mut [u32],
        panels: usize,
        multiply: impl Fn(Range<usize>, &[u32]) + Sync,
    ) {
        let block = tile_rows(self.isa, 1);
        let length = rows * self.row_len;
        let packed = SharedOutput::new(bytemuck::cast_slice_mut(&mut packed[..length]));
        let pack = |task: usize| {
            let block = task * block..((task + 1) * block).min(rows);
            // SAFETY: each task has rows of its own, whose packed elements lie side by side.
            unsafe {
                let packed =
                    packed.slice_mut(block.start * self.row_len, block.len() * self.row_len);
                self.pack(block, bytemuck::cast_slice_mut(packed));
            }
        };
        run_in_two_phases(rows.div_ceil(block), pack, panels, |share| {
            // SAFETY: all rows are packed, and nothing writes to them any more.
            let packed = unsafe { packed.slice(0, length) };
            multiply(share, bytemuck::cast_slice(packed));
        });
    }

    /// Packs the rows of `block` into `packed`.
    ///
    /// # Safety
    /// Nothing else reads or writes these rows of `inner` meanwhile.
    pub(super) unsafe fn pack(&self, block: Range<usize>, packed: &mut [u32]) {
        let isa = self.isa;
        if isa == Isa::Bf16 {
            for (input, at) in self.inputs.iter().zip(self.input_starts) {
                let floats = &input.values[block.start * input.columns..];
                self.pack_rows(floats, input.columns, at, packed);
            }
        }
        for (index, layer) in self.layers.iter().enumerate() {
            let (Some(pair), Some(target)) = (&layer.pair, &self.inner[index]) else { continue };
            let Some(left) = self.input(index, block.start, packed) else { continue };
            let rank = pair.down.outputs;
            let region = OutputRegion { start: block.start * rank, stride: rank, columns: rank };
            let product = std::iter::once(GemmOperands { left, right: &pair.down });
            let panels = 0..pair.down.panels();
            // SAFETY: the caller's promise.
            let floats = unsafe {
                multiply_panels(
                    isa,
                    block.len(),
                    product,
                    panels,
                    AccumulateMode::Overwrite,
                    target,
                    region,
                );
                target.slice_mut(region.start, block.len() * rank)
            };
            self.pack_rows(floats, rank, self.inner_starts[index], packed);
        }
    }

    /// Packs rows of floats into the elements that begin at `at` in each row of `packed`.
    fn pack_rows(&self, floats: &[f32], columns: usize, at: usize, packed: &mut [u32]) {
        let width = packed_len(self.isa, columns);
        for (row, packed) in floats.chunks_exact(columns).zip(packed.chunks_exact_mut(self.row_len))
        {
            pack_row(self.isa, row, &mut packed[at..at + width]);
        }
    }

    /// The input of a layer from row `first` on, which is the first in `packed`.
    fn input<'b>(
        &'b self,
        layer: usize,
        first: usize,
        packed: &'b [u32],
    ) -> Option<LeftOperand<'b>> {
        let index = if layer < self.inputs.len() { layer } else { 0 };
        let input = self.inputs.get(index)?;
        if self.isa == Isa::Bf16 {
            let start = self.input_starts[index];
            return Some(LeftOperand {
                elements: packed,
                start,
                row_stride: self.row_len,
                k_stride: 1,
            });
        }
        // f32 values are packed elements already.
        let (elements, columns) = (bytemuck::cast_slice(input.values), input.columns);
        Some(LeftOperand { elements, start: first * columns, row_stride: columns, k_stride: 1 })
    }

    /// The products whose sum is the output of these layers, for the rows from `first` on that `packed`
    /// holds.
    pub(super) fn operands<'b>(
        &'b self,
        layers: Range<usize>,
        first: usize,
        packed: &'b [u32],
    ) -> impl Iterator<Item = GemmOperands<'b>> + Clone {
        layers.flat_map(move |index| {
            let layer = &self.layers[index];
            let own = self.input(index, first, packed).zip(layer.weight);
            let own = own.map(|(left, packed)| GemmOperands { left, right: packed });
            let pair = layer.pair.as_ref().filter(|_| self.inner[index].is_some()).map(|pair| {
                let start = self.inner_starts[index];
                let left =
                    LeftOperand { elements: packed, start, row_stride: self.row_len, k_stride: 1 };
                GemmOperands { left, right: &pair.up }
            });
            own.into_iter().chain(pair)
        })
    }
}
