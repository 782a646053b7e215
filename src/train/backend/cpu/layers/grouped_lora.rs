//! Grouped LoRA (multi-LoRA, as Punica's SGMV): linear layers of one input, forward only, where groups of
//! rows have LoRA pairs of their own. Sequences with different adapters decode in one step this way.
//!
//! The base layers are multiplied with all rows together. The sums of a group's pair continue those sums, so
//! that a row's result does not depend on the other rows and equals that of training, where both are one
//! sum. Few rows are split by the panels of all layers, many rows into blocks.

use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;

use super::linear::{MAX_LAYERS, MatrixView, PackedLora, rows_per_task};
use crate::train::backend::cpu::buffer_pool::BufferPool;
use crate::train::backend::cpu::buffer_pool::with_scratch;
use crate::train::backend::cpu::gemm::matmul::{GemmOperands, multiply_panels};
use crate::train::backend::cpu::gemm::packed_element::{pack_row, packed_len};
use crate::train::backend::cpu::gemm::packed_matrix::PackedMatrix;
use crate::train::backend::cpu::gemm::tile::{
    AccumulateMode, LeftOperand, OutputRegion, SharedOutput,
};
use crate::train::backend::cpu::isa::Isa;
use crate::train::backend::cpu::vector;

/// Most rows that are split by panels.
const FEW_ROWS: usize = 96;

/// Tasks for each thread, where panels are split.
const TASKS_PER_THREAD: usize = 4;

/// A layer of the base model, which all rows go through.
#[derive(Clone, Copy)]
pub struct BaseLinear<'a> {
    /// The layer.
    pub weight: &'a PackedMatrix,
    /// Added to each row of the result.
    pub bias: Option<&'a [f32]>,
}

/// Rows with the same adapter, and its packed pair for each layer, where it has one.
pub struct PackedLoraGroup<'a> {
    /// The rows.
    pub rows: Range<usize>,
    /// One for each layer.
    pub pairs: [Option<&'a PackedLora>; MAX_LAYERS],
}

/// `y = x · Wᵀ + bias`, and `+ scale · (x · aᵀ) · bᵀ` for the rows of `groups`, for each of the layers,
/// which read the same `x`.
///
/// # Panics
/// With more than [`MAX_LAYERS`] layers, or not as many results.
pub fn forward(
    isa: Isa,
    pool: &Arc<BufferPool>,
    x: MatrixView<'_>,
    layers: &[BaseLinear<'_>],
    groups: &[PackedLoraGroup<'_>],
    results: &mut [&mut [f32]],
) {
    let rows = x.values.len() / x.columns.max(1);
    let mut y = [const { None }; MAX_LAYERS];
    for (target, result) in y.iter_mut().zip(results.iter_mut()) {
        *target = Some(SharedOutput::new(result));
    }
    let rank = widest_rank(groups);
    let mut inner = pool.acquire(layers.len() * rows, rank);
    let inner = SharedOutput::new(inner.values_mut());
    let all = GroupedLora { isa, x, rows, layers, groups, rank, inner: &inner, y: &y };
    let room = |rows: usize| rows * packed_row_len(isa, x, layers.len(), rank);
    if rows <= FEW_ROWS {
        with_scratch(room(rows), |scratch| {
            // SAFETY: all rows are this task's, the only one there is.
            let packed = unsafe { all.pack(0..rows, scratch) };
            let panels: usize = layers.iter().map(|layer| layer.weight.panels()).sum();
            let tasks = (TASKS_PER_THREAD * rayon::current_num_threads()).min(panels).max(1);
            (0..tasks).into_par_iter().for_each(|task| {
                let share = panels * task / tasks..panels * (task + 1) / tasks;
                // SAFETY: each task has panels of its own.
                unsafe { all.multiply(&packed, share) };
            });
        });
    } else {
        let block = rows_per_task(isa, rows);
        (0..rows.div_ceil(block)).into_par_iter().for_each(|task| {
            let block = task * block..((task + 1) * block).min(rows);
            with_scratch(room(block.len()), |scratch| {
                // SAFETY: each task has rows of its own.
                unsafe {
                    let packed = all.pack(block, scratch);
                    all.multiply(&packed, 0..usize::MAX);
                }
            });
        });
    }
    for (layer, result) in layers.iter().zip(results) {
        if let Some(bias) = layer.bias {
            let rows = result.par_chunks_exact_mut(bias.len()).with_min_len(FEW_ROWS);
            rows.for_each(|row| vector::add_scaled(isa, row, bias, 1.0));
        }
    }
}

fn widest_rank(groups: &[PackedLoraGroup<'_>]) -> usize {
    let pairs = groups.iter().flat_map(|group| group.pairs.iter().flatten());
    pairs.map(|pair| pair.down.outputs).max().unwrap_or(0)
}

/// Packed elements that a task makes of a row; inputs are not packed where the kernels multiply f32.
fn packed_row_len(isa: Isa, x: MatrixView<'_>, layers: usize, rank: usize) -> usize {
    if isa == Isa::Bf16 {
        packed_len(isa, x.columns) + layers * packed_len(isa, rank)
    } else {
        layers * rank
    }
}

/// The operands and outputs of all tasks.
struct GroupedLora<'a> {
    isa: Isa,
    x: MatrixView<'a>,
    rows: usize,
    layers: &'a [BaseLinear<'a>],
    groups: &'a [PackedLoraGroup<'a>],
    /// Columns of `inner`.
    rank: usize,
    /// x · aᵀ of one layer after the other.
    inner: &'a SharedOutput<'a>,
    y: &'a [Option<SharedOutput<'a>>; MAX_LAYERS],
}

/// A block of rows, packed, with its inner activations.
struct PackedBlock<'a> {
    rows: Range<usize>,
    x: LeftOperand<'a>,
    pairs: Vec<InnerRows<'a>>,
}

/// The packed inner activations x · aᵀ of a pair for its rows in a block.
struct InnerRows<'a> {
    layer: usize,
    rows: Range<usize>,
    inner: LeftOperand<'a>,
    up: &'a PackedMatrix,
}

impl GroupedLora<'_> {
    /// Packs a block's rows and computes the inner activations of their pairs.
    ///
    /// # Safety
    /// Nothing else reads or writes these rows of `inner` meanwhile.
    unsafe fn pack<'b>(
        &'b self,
        block: Range<usize>,
        mut scratch: &'b mut [u32],
    ) -> PackedBlock<'b> {
        let Self { isa, x, .. } = *self;
        let columns = x.columns;
        let left = if isa == Isa::Bf16 {
            let floats = &x.values[block.start * columns..block.end * columns];
            pack_rows(isa, floats, columns, block.len(), &mut scratch)
        } else {
            let elements = bytemuck::cast_slice(x.values);
            let start = block.start * columns;
            LeftOperand { elements, start, row_stride: columns, k_stride: 1 }
        };
        let mut pairs = Vec::new();
        for group in self.groups {
            let rows = group.rows.start.max(block.start)..group.rows.end.min(block.end);
            if rows.is_empty() {
                continue;
            }
            for layer in 0..self.layers.len() {
                let Some(pair) = group.pairs[layer] else { continue };
                let rank = pair.down.outputs;
                let start = (layer * self.rows + rows.start) * self.rank;
                let region = OutputRegion { start, stride: rank, columns: rank };
                let from = left.skip_rows(rows.start - block.start);
                let product = std::iter::once(GemmOperands { left: from, right: &pair.down });
                let (mode, panels) = (AccumulateMode::Overwrite, 0..pair.down.panels());
                // SAFETY: the caller's promise.
                let floats = unsafe {
                    multiply_panels(isa, rows.len(), product, panels, mode, self.inner, region);
                    self.inner.slice_mut(start, rows.len() * rank)
                };
                let inner = pack_rows(isa, floats, rank, rows.len(), &mut scratch);
                pairs.push(InnerRows { layer, rows: rows.clone(), inner, up: &pair.up });
            }
        }
        PackedBlock { rows: block, x: left, pairs }
    }

    /// The products of a block with so many of the panels of all layers, one layer after the other.
    ///
    /// # Safety
    /// Nothing else reads or writes these rows of these panels of `y` meanwhile.
    unsafe fn multiply(&self, packed: &PackedBlock<'_>, share: Range<usize>) {
        let mut before = 0;
        for (index, (layer, y)) in self.layers.iter().zip(self.y.iter().flatten()).enumerate() {
            let outputs = layer.weight.outputs;
            let end = share.end.saturating_sub(before).min(layer.weight.panels());
            let panels = share.start.saturating_sub(before).min(end)..end;
            before += layer.weight.panels();
            let region = |rows: &Range<usize>| OutputRegion {
                start: rows.start * outputs,
                stride: outputs,
                columns: outputs,
            };
            for panel in panels {
                let panel = panel..panel + 1;
                let own = std::iter::once(GemmOperands { left: packed.x, right: layer.weight });
                let rows = &packed.rows;
                // SAFETY: the caller's promise.
                unsafe {
                    let mode = AccumulateMode::Overwrite;
                    multiply_panels(
                        self.isa,
                        rows.len(),
                        own,
                        panel.clone(),
                        mode,
                        y,
                        region(rows),
                    );
                }
                for pair in packed.pairs.iter().filter(|pair| pair.layer == index) {
                    let more = std::iter::once(GemmOperands { left: pair.inner, right: pair.up });
                    let (rows, mode) = (&pair.rows, AccumulateMode::StartFromOutput);
                    // SAFETY: the caller's promise.
                    unsafe {
                        multiply_panels(
                            self.isa,
                            rows.len(),
                            more,
                            panel.clone(),
                            mode,
                            y,
                            region(rows),
                        );
                    }
                }
            }
        }
    }
}

/// Packs rows of floats at the beginning of `scratch`, which becomes the rest.
fn pack_rows<'a>(
    isa: Isa,
    floats: &[f32],
    columns: usize,
    rows: usize,
    scratch: &mut &'a mut [u32],
) -> LeftOperand<'a> {
    let width = packed_len(isa, columns);
    let (made, rest) = std::mem::take(scratch).split_at_mut(rows * width);
    *scratch = rest;
    for (row, elements) in floats.chunks_exact(columns).zip(made.chunks_exact_mut(width)) {
        pack_row(isa, row, elements);
    }
    LeftOperand { elements: made, start: 0, row_stride: width, k_stride: 1 }
}
