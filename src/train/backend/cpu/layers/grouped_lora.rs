//! Linear layers of one input, forward only, where runs of its rows have LoRA pairs of their own: how
//! texts with different adapters are answered in one pass.
//!
//! The layers themselves are multiplied with all rows together; the sums of a run's pair go on from
//! there, so that a row comes out alike whatever stands beside it, and as in training, where both are
//! one sum. Few rows share out the panels of all layers, in one go; many rows are cut into blocks.

use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;

use super::linear::{MOST_LAYERS, PackedPair, Rows, rows_of_a_task};
use crate::train::backend::cpu::buffer_pool::with_scratch;
use crate::train::backend::cpu::buffer_pool::{BufferPool, CpuMatrix};
use crate::train::backend::cpu::gemm::matmul::{GemmOperands, multiply_panels};
use crate::train::backend::cpu::gemm::packed_element::{pack_row, packed_len};
use crate::train::backend::cpu::gemm::packed_matrix::PackedMatrix;
use crate::train::backend::cpu::gemm::tile::{
    AccumulateMode, LeftOperand, OutputRegion, SharedOutput,
};
use crate::train::backend::cpu::isa::Isa;
use crate::train::backend::cpu::vector;

/// Most rows that share out panels.
const FEW_ROWS: usize = 96;

/// Tasks for each thread among which panels are shared out.
const TASKS_A_THREAD: usize = 4;

/// A layer that all rows go through.
#[derive(Clone, Copy)]
pub struct Shared<'a> {
    /// The layer.
    pub weight: &'a PackedMatrix,
    /// Added to each row of the result.
    pub bias: Option<&'a [f32]>,
}

/// Rows and the pairs beside the layers for them, a pair or none for each layer.
pub struct Run<'a> {
    /// The rows.
    pub rows: Range<usize>,
    /// As many as there are layers.
    pub pairs: [Option<&'a PackedPair>; MOST_LAYERS],
}

/// `y = x · Wᵀ + bias`, and `+ scale · (x · aᵀ) · bᵀ` for the rows of `runs`, for each of the layers,
/// which read the same `x`.
///
/// # Panics
/// With more than [`MOST_LAYERS`] layers, or not as many results.
pub fn forward(
    isa: Isa,
    pool: &Arc<BufferPool>,
    x: Rows<'_>,
    layers: &[Shared<'_>],
    runs: &[Run<'_>],
    results: &mut [&mut [f32]],
) {
    let rows = x.values.len() / x.columns.max(1);
    let mut y = [const { None }; MOST_LAYERS];
    for (target, result) in y.iter_mut().zip(results.iter_mut()) {
        *target = Some(SharedOutput::new(result));
    }
    let rank = widest_rank(runs);
    let mut inner = pool.acquire(layers.len() * rows, rank);
    let inner = SharedOutput::new(inner.values_mut());
    let all = All { isa, x, rows, layers, runs, rank, inner: &inner, y: &y };
    let room = |rows: usize| rows * words_of_a_row(isa, x, layers.len(), rank);
    if rows <= FEW_ROWS {
        with_scratch(room(rows), |space| {
            // SAFETY: all rows are this task's, the only one there is.
            let ready = unsafe { all.prepare(0..rows, space) };
            let panels: usize = layers.iter().map(|layer| layer.weight.panels()).sum();
            let tasks = (TASKS_A_THREAD * rayon::current_num_threads()).min(panels).max(1);
            (0..tasks).into_par_iter().for_each(|task| {
                let share = panels * task / tasks..panels * (task + 1) / tasks;
                // SAFETY: each task has panels of its own.
                unsafe { all.multiply(&ready, share) };
            });
        });
    } else {
        let block = rows_of_a_task(isa, rows);
        (0..rows.div_ceil(block)).into_par_iter().for_each(|task| {
            let block = task * block..((task + 1) * block).min(rows);
            with_scratch(room(block.len()), |space| {
                // SAFETY: each task has rows of its own.
                unsafe {
                    let ready = all.prepare(block, space);
                    all.multiply(&ready, 0..usize::MAX);
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

fn widest_rank(runs: &[Run<'_>]) -> usize {
    let pairs = runs.iter().flat_map(|run| run.pairs.iter().flatten());
    pairs.map(|pair| pair.first.outputs).max().unwrap_or(0)
}

/// Words that a task makes of a row: none where floats are words already.
fn words_of_a_row(isa: Isa, x: Rows<'_>, layers: usize, rank: usize) -> usize {
    if isa == Isa::Bf16 {
        packed_len(isa, x.columns) + layers * packed_len(isa, rank)
    } else {
        layers * rank
    }
}

/// What all tasks read, and where they write.
struct All<'a> {
    isa: Isa,
    x: Rows<'a>,
    rows: usize,
    layers: &'a [Shared<'a>],
    runs: &'a [Run<'a>],
    /// Columns of `inner`.
    rank: usize,
    /// x · aᵀ, of one layer after the other.
    inner: &'a SharedOutput<'a>,
    y: &'a [Option<SharedOutput<'a>>; MOST_LAYERS],
}

/// A block of rows in words.
struct Ready<'a> {
    rows: Range<usize>,
    x: LeftOperand<'a>,
    pairs: Vec<PairRows<'a>>,
}

/// What a pair made of its rows in a block.
struct PairRows<'a> {
    layer: usize,
    rows: Range<usize>,
    between: LeftOperand<'a>,
    second: &'a PackedMatrix,
}

impl All<'_> {
    /// Turns a block's rows into words and computes what the pairs have in between.
    ///
    /// # Safety
    /// Nothing else reads or writes these rows of `inner` meanwhile.
    unsafe fn prepare<'b>(&'b self, block: Range<usize>, mut space: &'b mut [u32]) -> Ready<'b> {
        let Self { isa, x, .. } = *self;
        let columns = x.columns;
        let left = if isa == Isa::Bf16 {
            let floats = &x.values[block.start * columns..block.end * columns];
            to_words(isa, floats, columns, block.len(), &mut space)
        } else {
            let elements = bytemuck::cast_slice(x.values);
            let start = block.start * columns;
            LeftOperand { elements, start, row_stride: columns, k_stride: 1 }
        };
        let mut pairs = Vec::new();
        for run in self.runs {
            let rows = run.rows.start.max(block.start)..run.rows.end.min(block.end);
            if rows.is_empty() {
                continue;
            }
            for layer in 0..self.layers.len() {
                let Some(pair) = run.pairs[layer] else { continue };
                let rank = pair.first.outputs;
                let start = (layer * self.rows + rows.start) * self.rank;
                let region = OutputRegion { start, stride: rank, columns: rank };
                let from = left.from_row(rows.start - block.start);
                let factors = std::iter::once(GemmOperands { left: from, right: &pair.first });
                let (mode, panels) = (AccumulateMode::Overwrite, 0..pair.first.panels());
                // SAFETY: the caller's promise.
                let floats = unsafe {
                    multiply_panels(isa, rows.len(), factors, panels, mode, self.inner, region);
                    self.inner.slice_mut(start, rows.len() * rank)
                };
                let between = to_words(isa, floats, rank, rows.len(), &mut space);
                pairs.push(PairRows { layer, rows: rows.clone(), between, second: &pair.second });
            }
        }
        Ready { rows: block, x: left, pairs }
    }

    /// The products of a block with so many of the panels of all layers, one layer after the other.
    ///
    /// # Safety
    /// Nothing else reads or writes these rows of these panels of `y` meanwhile.
    unsafe fn multiply(&self, ready: &Ready<'_>, share: Range<usize>) {
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
                let own = std::iter::once(GemmOperands { left: ready.x, right: layer.weight });
                let rows = &ready.rows;
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
                for pair in ready.pairs.iter().filter(|pair| pair.layer == index) {
                    let more =
                        std::iter::once(GemmOperands { left: pair.between, right: pair.second });
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

/// Rows of floats as words at the beginning of `space`, which is left with the rest.
fn to_words<'a>(
    isa: Isa,
    floats: &[f32],
    columns: usize,
    rows: usize,
    space: &mut &'a mut [u32],
) -> LeftOperand<'a> {
    let width = packed_len(isa, columns);
    let (made, rest) = std::mem::take(space).split_at_mut(rows * width);
    *space = rest;
    for (row, elements) in floats.chunks_exact(columns).zip(made.chunks_exact_mut(width)) {
        pack_row(isa, row, elements);
    }
    LeftOperand { elements: made, start: 0, row_stride: width, k_stride: 1 }
}

/// A LoRA pair packed once for many passes.
pub struct Prepared(PackedPair);

impl Prepared {
    /// Packs A of `[rank, inputs]` and B of `[outputs, rank]`, with the scale in B.
    pub fn new(isa: Isa, pool: &Arc<BufferPool>, a: &CpuMatrix, b: &CpuMatrix, scale: f32) -> Self {
        Self(PackedPair::forward(isa, pool, a, b, scale))
    }

    /// The pair.
    pub fn pair(&self) -> &PackedPair {
        &self.0
    }

    /// Bytes that it takes.
    pub fn memory_use(&self) -> u64 {
        self.0.first.memory_use() + self.0.second.memory_use()
    }
}
