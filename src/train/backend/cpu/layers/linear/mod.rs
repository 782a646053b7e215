//! Linear layers that share an input, with their LoRA pairs: forward and backward.
//!
//! A task is a block of rows. It packs them once (see [`packed_left`]) and then sums x · Wᵀ and
//! (x · aᵀ) · bᵀ in the same accumulators, so that a LoRA pair needs no pass of its own over the output.
//! Backward sums the gradients of all layers for their common input in the same way. Where there are few
//! rows, all of them are packed first, and threads take the panels of the matrices from a work queue: each
//! panel is read by one thread only.

mod packed_left;
mod packed_linear;

use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;

use self::packed_left::PackedLeft;
pub use self::packed_linear::{LinearOutput, MAX_LAYERS, MatrixView, PackedLinear, PackedLora};
use crate::train::backend::cpu::buffer_pool::{BufferPool, CpuMatrix, with_scratch};
use crate::train::backend::cpu::gemm::matmul::{add_transposed_product, multiply_panels};
use crate::train::backend::cpu::gemm::tile::{
    AccumulateMode, OutputRegion, SharedOutput, tile_rows,
};
use crate::train::backend::cpu::isa::Isa;
use crate::train::backend::cpu::vector;

/// Most rows of a task: packed, they stay in the second-level cache beside a panel. f32 takes twice the
/// memory of bf16.
fn max_task_rows(isa: Isa) -> usize {
    if isa == Isa::Bf16 { 96 } else { 48 }
}

/// Most rows of a product that threads split by panels instead of by rows.
const FEW_ROWS: usize = 96;

/// The same of a wide product.
const FEW_ROWS_OF_WIDE: usize = 256;

/// Columns for each thread from which on a product is wide.
const WIDE_COLUMNS: usize = 768;

/// `y (+)= x · Wᵀ + scale · (x · aᵀ) · bᵀ + bias` for each of the layers, which read the same `x`.
///
/// # Panics
/// With more than [`MAX_LAYERS`] layers, or not as many results.
pub fn forward(
    isa: Isa,
    x: MatrixView<'_>,
    layers: &[PackedLinear<'_>],
    mode: AccumulateMode,
    results: &mut [LinearOutput<'_>],
) {
    let rows = x.values.len() / x.columns.max(1);
    let mut inner = [const { None }; MAX_LAYERS];
    let mut y = [const { None }; MAX_LAYERS];
    for (index, results) in results.iter_mut().enumerate() {
        inner[index] = Some(SharedOutput::new(results.inner));
        y[index] = Some(SharedOutput::new(results.y));
    }
    let packed_left = PackedLeft::new(isa, std::slice::from_ref(&x), layers, &inner);
    let columns: usize = layers.iter().map(PackedLinear::outputs).sum();
    let threads = rayon::current_num_threads();
    let results_of = |index: usize, layer: &PackedLinear<'_>| {
        let region = OutputRegion { start: 0, stride: layer.outputs(), columns: layer.outputs() };
        y[index].as_ref().map(|target| (target, region))
    };
    if rows <= FEW_ROWS || (rows <= FEW_ROWS_OF_WIDE && columns >= WIDE_COLUMNS * threads) {
        with_scratch(rows * packed_left.row_len, |space| {
            let panels = layers.iter().map(PackedLinear::panels).sum();
            let multiply = |share: Range<usize>, space: &[u32]| {
                let mut before = 0;
                for (index, layer) in layers.iter().enumerate() {
                    let own = |at: usize| at.saturating_sub(before).min(layer.panels());
                    let own = own(share.start)..own(share.end);
                    before += layer.panels();
                    let Some((target, region)) = results_of(index, layer) else { continue };
                    let operands = packed_left.operands(index..index + 1, 0, space);
                    // SAFETY: each task has panels of its own.
                    unsafe { multiply_panels(isa, rows, operands, own, mode, target, region) };
                }
            };
            // SAFETY: all rows are this call's.
            unsafe { packed_left.pack_and_multiply(rows, space, panels, multiply) };
        });
    } else {
        let block = rows_per_task(isa, rows);
        (0..rows.div_ceil(block)).into_par_iter().for_each(|task| {
            let block = task * block..((task + 1) * block).min(rows);
            with_scratch(block.len() * packed_left.row_len, |space| {
                // SAFETY: each task has rows of its own.
                unsafe { packed_left.pack(block.clone(), space) };
                for (index, layer) in layers.iter().enumerate() {
                    let Some((target, region)) = results_of(index, layer) else { continue };
                    let operands = packed_left.operands(index..index + 1, block.start, space);
                    let region = OutputRegion { start: block.start * layer.outputs(), ..region };
                    let panels = 0..layer.panels();
                    // SAFETY: each task has rows of its own.
                    unsafe {
                        multiply_panels(isa, block.len(), operands, panels, mode, target, region)
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
/// backward pass, where `gradients` are those of their outputs. `inner_gradients` become
/// scale · gradient · b of each layer (empty without a pair); without `into` nothing else is computed.
///
/// # Panics
/// With more than [`MAX_LAYERS`] layers, or not as many gradients.
pub fn backward(
    isa: Isa,
    gradients: &[MatrixView<'_>],
    layers: &[PackedLinear<'_>],
    mode: AccumulateMode,
    into: Option<&mut [f32]>,
    inner_gradients: &mut [&mut [f32]],
) {
    let (Some(first), Some(layer)) = (gradients.first(), layers.first()) else { return };
    let rows = first.values.len() / first.columns.max(1);
    let (outputs, panels) = (layer.outputs(), layer.panels());
    let into = into.map(SharedOutput::new);
    let mut inner = [const { None }; MAX_LAYERS];
    for (target, values) in inner.iter_mut().zip(inner_gradients) {
        *target = Some(SharedOutput::new(values));
    }
    let packed_left = PackedLeft::new(isa, gradients, layers, &inner);
    let region = OutputRegion { start: 0, stride: outputs, columns: outputs };
    if rows <= FEW_ROWS {
        with_scratch(rows * packed_left.row_len, |space| {
            let multiply = |share: Range<usize>, space: &[u32]| {
                let Some(into) = &into else { return };
                let operands = packed_left.operands(0..layers.len(), 0, space);
                // SAFETY: each task has panels of its own.
                unsafe { multiply_panels(isa, rows, operands, share, mode, into, region) };
            };
            let panels = if into.is_some() { panels } else { 0 };
            // SAFETY: all rows are this call's.
            unsafe { packed_left.pack_and_multiply(rows, space, panels, multiply) };
        });
        return;
    }
    let block = rows_per_task(isa, rows);
    (0..rows.div_ceil(block)).into_par_iter().for_each(|task| {
        let block = task * block..((task + 1) * block).min(rows);
        with_scratch(block.len() * packed_left.row_len, |space| {
            // SAFETY: each task has rows of its own.
            unsafe { packed_left.pack(block.clone(), space) };
            let Some(into) = &into else { return };
            let operands = packed_left.operands(0..layers.len(), block.start, space);
            let region = OutputRegion { start: block.start * outputs, ..region };
            // SAFETY: each task has rows of its own.
            unsafe { multiply_panels(isa, block.len(), operands, 0..panels, mode, into, region) };
        });
    });
}

/// Adds the gradients of a pair to `gradient_a` (`[rank, inputs]`) and `gradient_b`
/// (`[outputs, rank]`). `inner_gradient` is computed by [`backward`], `inner` by [`forward`].
#[expect(clippy::too_many_arguments, reason = "what forward read and made, and its gradients")]
pub fn pair_gradients(
    isa: Isa,
    pool: &Arc<BufferPool>,
    x: MatrixView<'_>,
    gradient: MatrixView<'_>,
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
    // The gradient of B is computed transposed, so that its rows are wide enough for the tiles.
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

/// Rows of one task: few enough for the cache, and the same number of tasks for each thread.
pub(super) fn rows_per_task(isa: Isa, rows: usize) -> usize {
    let threads = rayon::current_num_threads();
    let tasks = rows.div_ceil(max_task_rows(isa)).next_multiple_of(threads).max(1);
    rows.div_ceil(tasks).next_multiple_of(tile_rows(isa, 1)).max(1)
}
