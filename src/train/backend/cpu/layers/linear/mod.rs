//! Linear layers of one input together, with their LoRA pairs: forward and backward.
//!
//! A task is a block of rows. It makes them ready once (see [`ready`]), and then sums x · Wᵀ and
//! (x · aᵀ) · bᵀ in the same registers, so that a pair costs no pass of its own over the result. Backward
//! likewise sums the gradients that all layers give their common input. Where there are few rows, all of
//! them are made ready first, and threads take the matrices' panels in turns: each panel is read by one
//! thread alone.

mod packed_left;

use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;

use self::packed_left::Preparation;
use crate::train::backend::cpu::buffer_pool::with_scratch;
use crate::train::backend::cpu::buffer_pool::{BufferPool, CpuMatrix};
use crate::train::backend::cpu::gemm::matmul::{add_transposed_product, multiply_panels};
use crate::train::backend::cpu::gemm::packed_element::packed_len;
use crate::train::backend::cpu::gemm::packed_matrix::PackedMatrix;
use crate::train::backend::cpu::gemm::tile::{
    AccumulateMode, OutputRegion, SharedOutput, tile_rows,
};
use crate::train::backend::cpu::isa::Isa;
use crate::train::backend::cpu::vector;

/// Most layers that share an input: queries, keys and values.
pub const MOST_LAYERS: usize = 3;

/// Most rows of a task: their words stay in the second-level cache beside a panel. Floats take twice the
/// room of bfloat16 numbers.
fn most_rows(isa: Isa) -> usize {
    if isa == Isa::Bf16 { 96 } else { 48 }
}

/// Most rows of a product whose panels are shared out instead of its rows.
const FEW_ROWS: usize = 96;

/// The same of a wide product.
const MORE_ROWS: usize = 256;

/// Columns for each thread that make a product wide.
const WIDE: usize = 768;

/// A LoRA pair packed for one pass, with its scale in B.
pub struct PackedPair {
    /// What turns the task's rows into as many columns as the rank: A forward, Bᵀ backward.
    pub(super) first: PackedMatrix,
    /// What turns these into the result: B forward, Aᵀ backward.
    pub(super) second: PackedMatrix,
}

impl PackedPair {
    /// Packs A of `[rank, inputs]` and B of `[outputs, rank]` for the way forward.
    pub fn forward(
        isa: Isa,
        pool: &Arc<BufferPool>,
        a: &CpuMatrix,
        b: &CpuMatrix,
        scale: f32,
    ) -> Self {
        let b = scaled(isa, pool, b, scale);
        Self {
            first: PackedMatrix::pack_temporary(isa, pool, a),
            second: PackedMatrix::pack_temporary(isa, pool, &b),
        }
    }

    /// Packs them for the way back.
    pub fn backward(
        isa: Isa,
        pool: &Arc<BufferPool>,
        a: &CpuMatrix,
        b: &CpuMatrix,
        scale: f32,
    ) -> Self {
        let b = scaled(isa, pool, b, scale);
        Self {
            first: PackedMatrix::pack_transposed_temporary(isa, pool, &b),
            second: PackedMatrix::pack_transposed_temporary(isa, pool, a),
        }
    }
}

fn scaled(isa: Isa, pool: &Arc<BufferPool>, matrix: &CpuMatrix, factor: f32) -> CpuMatrix {
    let mut made = pool.acquire(matrix.rows(), matrix.columns());
    made.values_mut().copy_from_slice(matrix.values());
    vector::scale(isa, made.values_mut(), factor);
    made
}

/// A matrix and a pair that are applied to the same rows.
pub struct Layer<'a> {
    /// `None` where the pair's part alone is wanted.
    pub weight: Option<&'a PackedMatrix>,
    /// Added to each row of the result.
    pub bias: Option<&'a [f32]>,
    /// The pair beside it.
    pub pair: Option<PackedPair>,
}

impl Layer<'_> {
    /// A layer without anything.
    pub const NOTHING: Self = Self { weight: None, bias: None, pair: None };

    /// What decides on the shape of the result.
    fn last(&self) -> Option<&PackedMatrix> {
        self.weight.or(self.pair.as_ref().map(|pair| &pair.second))
    }

    fn outputs(&self) -> usize {
        self.last().map_or(0, |packed| packed.outputs)
    }

    fn panels(&self) -> usize {
        self.last().map_or(0, PackedMatrix::panels)
    }

    /// Words of a row between the matrices of its pair.
    fn words_between(&self, isa: Isa) -> usize {
        self.pair.as_ref().map_or(0, |pair| packed_len(isa, pair.first.outputs))
    }
}

/// Rows of floats.
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    /// Row-major.
    pub values: &'a [f32],
    /// Length of a row.
    pub columns: usize,
}

impl Rows<'_> {
    /// Words that a task makes of a row: none where the floats are words already.
    fn elements(&self, isa: Isa) -> usize {
        if isa == Isa::Bf16 { packed_len(isa, self.columns) } else { 0 }
    }
}

/// Where a layer's products go.
pub struct Results<'a> {
    /// The layer's result.
    pub y: &'a mut [f32],
    /// x · aᵀ; empty without a pair.
    pub inner: &'a mut [f32],
}

/// `y (+)= x · Wᵀ + scale · (x · aᵀ) · bᵀ + bias` for each of the layers, which read the same `x`.
///
/// # Panics
/// With more than [`MOST_LAYERS`] layers, or not as many results.
pub fn forward(
    isa: Isa,
    x: Rows<'_>,
    layers: &[Layer<'_>],
    mode: AccumulateMode,
    results: &mut [Results<'_>],
) {
    let rows = x.values.len() / x.columns.max(1);
    let mut inner = [const { None }; MOST_LAYERS];
    let mut y = [const { None }; MOST_LAYERS];
    for (index, results) in results.iter_mut().enumerate() {
        inner[index] = Some(SharedOutput::new(results.inner));
        y[index] = Some(SharedOutput::new(results.y));
    }
    let preparation = Preparation::new(isa, std::slice::from_ref(&x), layers, &inner);
    let columns: usize = layers.iter().map(Layer::outputs).sum();
    let threads = rayon::current_num_threads();
    let results_of = |index: usize, layer: &Layer<'_>| {
        let region = OutputRegion { start: 0, stride: layer.outputs(), columns: layer.outputs() };
        y[index].as_ref().map(|target| (target, region))
    };
    if rows <= FEW_ROWS || (rows <= MORE_ROWS && columns >= WIDE * threads) {
        with_scratch(rows * preparation.room, |space| {
            let panels = layers.iter().map(Layer::panels).sum();
            let multiply = |share: Range<usize>, space: &[u32]| {
                let mut before = 0;
                for (index, layer) in layers.iter().enumerate() {
                    let own = |at: usize| at.saturating_sub(before).min(layer.panels());
                    let own = own(share.start)..own(share.end);
                    before += layer.panels();
                    let Some((target, region)) = results_of(index, layer) else { continue };
                    let factors = preparation.factors(index..index + 1, 0, space);
                    // SAFETY: each turn has panels of its own.
                    unsafe { multiply_panels(isa, rows, factors, own, mode, target, region) };
                }
            };
            // SAFETY: all rows are this call's.
            unsafe { preparation.multiply_all(rows, space, panels, multiply) };
        });
    } else {
        let block = rows_of_a_task(isa, rows);
        (0..rows.div_ceil(block)).into_par_iter().for_each(|task| {
            let block = task * block..((task + 1) * block).min(rows);
            with_scratch(block.len() * preparation.room, |space| {
                // SAFETY: each task has rows of its own.
                unsafe { preparation.prepare(block.clone(), space) };
                for (index, layer) in layers.iter().enumerate() {
                    let Some((target, region)) = results_of(index, layer) else { continue };
                    let factors = preparation.factors(index..index + 1, block.start, space);
                    let region = OutputRegion { start: block.start * layer.outputs(), ..region };
                    let panels = 0..layer.panels();
                    // SAFETY: each task has rows of its own.
                    unsafe {
                        multiply_panels(isa, block.len(), factors, panels, mode, target, region)
                    };
                }
            });
        });
    }
    for (layer, results) in layers.iter().zip(results) {
        if let Some(bias) = layer.bias {
            let rows = results.y.par_chunks_exact_mut(bias.len()).with_min_len(16);
            rows.for_each(|row| vector::add_scaled(isa, row, bias, 1.0));
        }
    }
}

/// `into (+)= Σ (gradient · W + scale · (gradient · b) · a)` over layers of one input, packed for the
/// way back, where `gradients` are those of their results. `inner_gradients` become
/// scale · gradient · b of each layer (empty without a pair); without `into` nothing else is computed.
///
/// # Panics
/// With more than [`MOST_LAYERS`] layers, or not as many gradients.
pub fn backward(
    isa: Isa,
    gradients: &[Rows<'_>],
    layers: &[Layer<'_>],
    mode: AccumulateMode,
    into: Option<&mut [f32]>,
    inner_gradients: &mut [&mut [f32]],
) {
    let (Some(first), Some(layer)) = (gradients.first(), layers.first()) else { return };
    let rows = first.values.len() / first.columns.max(1);
    let (outputs, panels) = (layer.outputs(), layer.panels());
    let into = into.map(SharedOutput::new);
    let mut inner = [const { None }; MOST_LAYERS];
    for (target, values) in inner.iter_mut().zip(inner_gradients) {
        *target = Some(SharedOutput::new(values));
    }
    let preparation = Preparation::new(isa, gradients, layers, &inner);
    let region = OutputRegion { start: 0, stride: outputs, columns: outputs };
    if rows <= FEW_ROWS {
        with_scratch(rows * preparation.room, |space| {
            let multiply = |share: Range<usize>, space: &[u32]| {
                let Some(into) = &into else { return };
                let factors = preparation.factors(0..layers.len(), 0, space);
                // SAFETY: each turn has panels of its own.
                unsafe { multiply_panels(isa, rows, factors, share, mode, into, region) };
            };
            let panels = if into.is_some() { panels } else { 0 };
            // SAFETY: all rows are this call's.
            unsafe { preparation.multiply_all(rows, space, panels, multiply) };
        });
        return;
    }
    let block = rows_of_a_task(isa, rows);
    (0..rows.div_ceil(block)).into_par_iter().for_each(|task| {
        let block = task * block..((task + 1) * block).min(rows);
        with_scratch(block.len() * preparation.room, |space| {
            // SAFETY: each task has rows of its own.
            unsafe { preparation.prepare(block.clone(), space) };
            let Some(into) = &into else { return };
            let factors = preparation.factors(0..layers.len(), block.start, space);
            let region = OutputRegion { start: block.start * outputs, ..region };
            // SAFETY: each task has rows of its own.
            unsafe { multiply_panels(isa, block.len(), factors, 0..panels, mode, into, region) };
        });
    });
}

/// Adds the gradients of a pair to `gradient_a` (`[rank, inputs]`) and `gradient_b`
/// (`[outputs, rank]`). `inner_gradient` is what [`backward`] made for it, `inner` what [`forward`]
/// did.
#[expect(clippy::too_many_arguments, reason = "what forward read and made, and its gradients")]
pub fn pair_gradients(
    isa: Isa,
    pool: &Arc<BufferPool>,
    x: Rows<'_>,
    gradient: Rows<'_>,
    inner: &CpuMatrix,
    inner_gradient: &CpuMatrix,
    scale: f32,
    gradient_a: &mut [f32],
    gradient_b: &mut [f32],
) {
    let rank = inner.columns();
    add_transposed_product(
        isa,
        inner_gradient.values(),
        rank,
        x.values,
        x.columns,
        1.0,
        gradient_a,
    );
    // B's as its transpose, which is as wide as tiles like it.
    let columns = gradient.columns;
    let mut transposed = pool.acquire(rank, columns);
    transposed.values_mut().fill(0.0);
    let values = transposed.values_mut();
    add_transposed_product(isa, inner.values(), rank, gradient.values, columns, scale, values);
    for (column, row) in transposed.values().chunks_exact(columns.max(1)).enumerate() {
        for (into, value) in gradient_b[column..].iter_mut().step_by(rank).zip(row) {
            *into += value;
        }
    }
}

/// Rows of one task: few enough for the cache, and as many tasks for one thread as for another.
pub(super) fn rows_of_a_task(isa: Isa, rows: usize) -> usize {
    let threads = rayon::current_num_threads();
    let tasks = rows.div_ceil(most_rows(isa)).next_multiple_of(threads).max(1);
    rows.div_ceil(tasks).next_multiple_of(tile_rows(isa, 1)).max(1)
}
