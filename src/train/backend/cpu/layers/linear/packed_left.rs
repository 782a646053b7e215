//! Rows made ready for the products of linear layers: turned into words once, whatever the number of
//! layers that read them, with what the layers' LoRA pairs have in between.

use std::ops::Range;

use super::{Layer, MOST_LAYERS, Rows};
use crate::train::backend::cpu::gemm::matmul::{GemmOperands, multiply_panels};
use crate::train::backend::cpu::gemm::packed_element::{pack_row, packed_len};
use crate::train::backend::cpu::gemm::tile::{
    AccumulateMode, LeftOperand, OutputRegion, SharedOutput, tile_rows,
};
use crate::train::backend::cpu::isa::Isa;
use crate::train::backend::cpu::parallel::run_in_two_phases;

/// What is to be made ready. The words of a row lie side by side: those of its inputs, one for all
/// layers or one for each, then those between the matrices of the pairs.
pub(super) struct Preparation<'a> {
    isa: Isa,
    inputs: &'a [Rows<'a>],
    layers: &'a [Layer<'a>],
    /// Where x · aᵀ of each layer goes.
    inner: &'a [Option<SharedOutput<'a>>; MOST_LAYERS],
    /// Where a row's words of each begin.
    inputs_at: [usize; MOST_LAYERS],
    between_at: [usize; MOST_LAYERS],
    /// Words of a row.
    pub(super) room: usize,
}

impl<'a> Preparation<'a> {
    /// # Panics
    /// With more than [`MOST_LAYERS`] inputs or layers.
    pub(super) fn new(
        isa: Isa,
        inputs: &'a [Rows<'a>],
        layers: &'a [Layer<'a>],
        inner: &'a [Option<SharedOutput<'a>>; MOST_LAYERS],
    ) -> Self {
        let (mut inputs_at, mut between_at) = ([0; MOST_LAYERS], [0; MOST_LAYERS]);
        let mut room = 0;
        for (input, at) in inputs.iter().zip(&mut inputs_at) {
            *at = room;
            room += input.elements(isa);
        }
        for (index, layer) in layers.iter().enumerate() {
            between_at[index] = room;
            room += layer.words_between(isa);
        }
        Self { isa, inputs, layers, inner, inputs_at, between_at, room }
    }

    /// Makes all rows ready in `space`, and then calls `multiply` with ranges of the panels, for the
    /// products of all rows with them; threads take turns.
    ///
    /// # Safety
    /// Nothing else reads or writes `inner` meanwhile.
    pub(super) unsafe fn multiply_all(
        &self,
        rows: usize,
        space: &mut [u32],
        panels: usize,
        multiply: impl Fn(Range<usize>, &[u32]) + Sync,
    ) {
        let block = tile_rows(self.isa, 1);
        let length = rows * self.room;
        let space = SharedOutput::new(bytemuck::cast_slice_mut(&mut space[..length]));
        let prepare = |turn: usize| {
            let block = turn * block..((turn + 1) * block).min(rows);
            // SAFETY: each turn has rows of its own, whose words lie side by side.
            unsafe {
                let space = space.slice_mut(block.start * self.room, block.len() * self.room);
                self.prepare(block, bytemuck::cast_slice_mut(space));
            }
        };
        run_in_two_phases(rows.div_ceil(block), prepare, panels, |share| {
            // SAFETY: all rows are ready, and nothing writes to them any more.
            let space = unsafe { space.slice(0, length) };
            multiply(share, bytemuck::cast_slice(space));
        });
    }

    /// Makes the rows of `block` ready in `space`.
    ///
    /// # Safety
    /// Nothing else reads or writes these rows of `inner` meanwhile.
    pub(super) unsafe fn prepare(&self, block: Range<usize>, space: &mut [u32]) {
        let isa = self.isa;
        if isa == Isa::Bf16 {
            for (input, at) in self.inputs.iter().zip(self.inputs_at) {
                let floats = &input.values[block.start * input.columns..];
                self.to_words(floats, input.columns, at, space);
            }
        }
        for (index, layer) in self.layers.iter().enumerate() {
            let (Some(pair), Some(target)) = (&layer.pair, &self.inner[index]) else { continue };
            let Some(left) = self.input(index, block.start, space) else { continue };
            let rank = pair.first.outputs;
            let region = OutputRegion { start: block.start * rank, stride: rank, columns: rank };
            let factor = std::iter::once(GemmOperands { left, right: &pair.first });
            let panels = 0..pair.first.panels();
            // SAFETY: the caller's promise.
            let floats = unsafe {
                multiply_panels(
                    isa,
                    block.len(),
                    factor,
                    panels,
                    AccumulateMode::Overwrite,
                    target,
                    region,
                );
                target.slice_mut(region.start, block.len() * rank)
            };
            self.to_words(floats, rank, self.between_at[index], space);
        }
    }

    /// Rows of floats as the words that begin at `at` of each row of `space`.
    fn to_words(&self, floats: &[f32], columns: usize, at: usize, space: &mut [u32]) {
        let width = packed_len(self.isa, columns);
        for (row, space) in floats.chunks_exact(columns).zip(space.chunks_exact_mut(self.room)) {
            pack_row(self.isa, row, &mut space[at..at + width]);
        }
    }

    /// What a layer reads, from row `first` on, which is the first in `space`.
    fn input<'b>(
        &'b self,
        layer: usize,
        first: usize,
        space: &'b [u32],
    ) -> Option<LeftOperand<'b>> {
        let index = if layer < self.inputs.len() { layer } else { 0 };
        let input = self.inputs.get(index)?;
        if self.isa == Isa::Bf16 {
            let start = self.inputs_at[index];
            return Some(LeftOperand {
                elements: space,
                start,
                row_stride: self.room,
                k_stride: 1,
            });
        }
        // Floats are words already.
        let (elements, columns) = (bytemuck::cast_slice(input.values), input.columns);
        Some(LeftOperand { elements, start: first * columns, row_stride: columns, k_stride: 1 })
    }

    /// What the results of these layers together are the sum of, for the rows from `first` on that were
    /// made ready in `space`.
    pub(super) fn factors<'b>(
        &'b self,
        layers: Range<usize>,
        first: usize,
        space: &'b [u32],
    ) -> impl Iterator<Item = GemmOperands<'b>> + Clone {
        layers.flat_map(move |index| {
            let layer = &self.layers[index];
            let own = self.input(index, first, space).zip(layer.weight);
            let own = own.map(|(left, packed)| GemmOperands { left, right: packed });
            let pair = layer.pair.as_ref().filter(|_| self.inner[index].is_some()).map(|pair| {
                let start = self.between_at[index];
                let left =
                    LeftOperand { elements: space, start, row_stride: self.room, k_stride: 1 };
                GemmOperands { left, right: &pair.second }
            });
            own.into_iter().chain(pair)
        })
    }
}
