//! Attention of a packed batch, backward.

use std::sync::Arc;

use rayon::prelude::*;

use super::layout::{BatchLayout, KeySlice, QueryBlock, VisibleKeys};
use super::packed_heads::{KMajor, KPairs, TransposedPanels};
use super::products::{AttentionInputs, QUERY_BLOCK, head_columns, scores};
use crate::train::backend::cpu::buffer_pool::with_scratch;
use crate::train::backend::cpu::buffer_pool::{BufferPool, CpuMatrix};
use crate::train::backend::cpu::gemm::matmul::multiply_rows;
use crate::train::backend::cpu::gemm::packed_element::{
    pack_k_pair, pack_row, packed_len, values_per_element,
};
use crate::train::backend::cpu::gemm::packed_matrix::PANEL;
use crate::train::backend::cpu::gemm::tile::{
    AccumulateMode, GemmTerm, LeftOperand, OutputRegion, SharedOutput,
};
use crate::train::backend::cpu::isa::Isa;
use crate::train::backend::cpu::vector;
use crate::train::backend::{AttentionShape, Segment};

/// Fewer tasks than that are split in two.
const FEW_TASKS: usize = 32;

/// Keys of one chunk: whole panels.
const KEYS: usize = 10 * PANEL;

/// Gradients of queries, keys and values, in the layouts of [`AttentionInputs`]; all are overwritten.
pub struct AttentionGradients<'a> {
    /// Of the queries.
    pub queries: &'a mut [f32],
    /// Of the keys.
    pub keys: &'a mut [f32],
    /// Of the values.
    pub values: &'a mut [f32],
}

/// The result of the forward pass, and the gradient of its output.
pub struct ForwardResult<'a> {
    /// `[tokens, heads · head_dim]`.
    pub output: &'a [f32],
    /// `[heads, tokens]`.
    pub log_sums: &'a [f32],
    /// As `output`.
    pub gradient: &'a [f32],
}

/// The packed operands that all tasks read.
struct BackwardOperands<'a> {
    made: ForwardResult<'a>,
    queries: KMajor,
    query_pairs: KPairs,
    keys: TransposedPanels,
    key_pairs: KPairs,
    values: TransposedPanels,
    gradient: KMajor,
    gradient_pairs: KPairs,
}

/// The outputs that all tasks write: gradients of the queries, and those of keys and values for each query
/// head of each part, `[parts, heads, tokens, head_dim]`.
struct BackwardOutputs<'a> {
    queries: SharedOutput<'a>,
    keys: SharedOutput<'a>,
    values: SharedOutput<'a>,
}

/// Backward of [`super::forward::forward`].
pub fn backward(
    isa: Isa,
    pool: &Arc<BufferPool>,
    inputs: &AttentionInputs<'_>,
    segments: &[Segment],
    shape: &AttentionShape,
    made: ForwardResult<'_>,
    gradients: AttentionGradients<'_>,
) {
    let layout = BatchLayout::new(isa, segments, shape);
    let (heads, kv_heads) = (shape.heads, shape.kv_heads);
    let read = BackwardOperands {
        queries: KMajor::new(&layout, pool, inputs.queries, heads),
        query_pairs: KPairs::new(&layout, pool, inputs.queries, heads),
        keys: TransposedPanels::new(&layout, pool, inputs.keys, kv_heads),
        key_pairs: KPairs::new(&layout, pool, inputs.keys, kv_heads),
        values: TransposedPanels::new(&layout, pool, inputs.values, kv_heads),
        gradient: KMajor::new(&layout, pool, made.gradient, heads),
        gradient_pairs: KPairs::new(&layout, pool, made.gradient, heads),
        made,
    };
    let roots = layout.segments.iter().enumerate().filter(|(index, seen)| seen.root == *index);
    // Few tasks are split in two, so that threads end together: each takes every other block of queries.
    let parts = if roots.count() * heads < FEW_TASKS { 2 } else { 1 };
    let size = layout.tokens() * shape.head_dim;
    let mut of_heads = [pool.acquire(parts * heads, size), pool.acquire(parts * heads, size)];
    {
        let [keys, values] = &mut of_heads;
        let write = BackwardOutputs {
            queries: SharedOutput::new(gradients.queries),
            keys: SharedOutput::new(keys.values_mut()),
            values: SharedOutput::new(values.values_mut()),
        };
        let mut tasks = Vec::new();
        for (index, seen) in layout.segments.iter().enumerate() {
            if seen.root == index {
                tasks.extend((0..parts * heads).map(|slot| (index, slot)));
            }
        }
        tasks.par_iter().for_each(|(root, slot)| {
            let part = slot / heads;
            // Segments of one root add to the same keys, so that one task of each part takes them all.
            let of_root = layout.segments.iter().filter(|seen| seen.root == *root);
            for seen in of_root.clone() {
                let rows = &seen.own().rows;
                let start = (slot * layout.tokens() + rows.start) * shape.head_dim;
                for target in [&write.keys, &write.values] {
                    // SAFETY: these rows of this head and part are this task's.
                    unsafe { target.slice_mut(start, rows.len() * shape.head_dim).fill(0.0) };
                }
            }
            for seen in of_root {
                let blocks = (0..seen.own().rows.len()).step_by(QUERY_BLOCK);
                for first in blocks.skip(part).step_by(parts) {
                    let block = layout.block(seen, first, QUERY_BLOCK);
                    // SAFETY: as above, and each block of queries is one part's.
                    unsafe { block_backward(&layout, seen, &block, *slot, &read, &write) };
                }
            }
        });
    }
    let [keys, values] = &of_heads;
    gather(&layout, keys, gradients.keys);
    gather(&layout, values, gradients.values);
}

/// Sums the gradients of the query heads that share a key head.
fn gather(layout: &BatchLayout, of_heads: &CpuMatrix, into: &mut [f32]) {
    let (isa, shape) = (layout.isa, &layout.shape);
    let group = shape.heads / shape.kv_heads;
    let (tokens, width) = (layout.tokens(), shape.head_dim);
    let rows = into.par_chunks_exact_mut(shape.kv_heads * width).with_min_len(16);
    rows.enumerate().for_each(|(row, into)| {
        for (kv_head, into) in into.chunks_exact_mut(width).enumerate() {
            into.fill(0.0);
            for part in 0..of_heads.rows() / shape.heads {
                for head in kv_head * group..(kv_head + 1) * group {
                    let start = ((part * shape.heads + head) * tokens + row) * width;
                    vector::add_scaled(isa, into, &of_heads.values()[start..][..width], 1.0);
                }
            }
        }
    });
}

/// One head of a block of queries; `slot` is the head in its part. Keys are processed in chunks, so that
/// intermediate results stay in the cache.
///
/// # Safety
/// Nothing else reads or writes the rows of this head in the block, nor those of the keys that it sees in
/// this part, meanwhile.
unsafe fn block_backward(
    layout: &BatchLayout,
    seen: &VisibleKeys,
    block: &QueryBlock,
    slot: usize,
    read: &BackwardOperands<'_>,
    write: &BackwardOutputs<'_>,
) {
    let shape = &layout.shape;
    let head = slot % shape.heads;
    let row = seen.own().rows.start + block.first;
    let mut rows = [RowConstants::default(); QUERY_BLOCK];
    for (index, constants) in rows[..block.rows].iter_mut().enumerate() {
        let start = ((row + index) * shape.heads + head) * shape.head_dim;
        let output = &read.made.output[start..][..shape.head_dim];
        let gradient = &read.made.gradient[start..][..shape.head_dim];
        *constants = RowConstants {
            mean: vector::dot(layout.isa, output, gradient),
            log_sum: read.made.log_sums[head * layout.tokens() + row + index],
        };
    }
    let mut mode = AccumulateMode::Overwrite;
    for slice in layout.slices(seen, block) {
        for first in (0..slice.keys).step_by(KEYS) {
            let chunk = KeyChunk { seen, block, slot, keys: slice.subslice(layout, first, KEYS) };
            // SAFETY: the caller's promise.
            unsafe { key_chunk_backward(layout, &chunk, &rows[..block.rows], read, write, mode) };
            mode = AccumulateMode::AddScaled(1.0);
        }
    }
}

/// Constants of a query's row.
#[derive(Clone, Copy, Default)]
struct RowConstants {
    /// Output · gradient: the mean of the score gradients under the probabilities.
    mean: f32,
    log_sum: f32,
}

/// One head of a block of queries, and some of the keys that it sees.
struct KeyChunk<'a> {
    seen: &'a VisibleKeys,
    block: &'a QueryBlock,
    slot: usize,
    keys: KeySlice,
}

/// Adds the contribution of a chunk to all gradients; the first chunk of a block overwrites those of the
/// queries.
///
/// # Safety
/// As [`block_backward`].
unsafe fn key_chunk_backward(
    layout: &BatchLayout,
    chunk: &KeyChunk<'_>,
    rows: &[RowConstants],
    read: &BackwardOperands<'_>,
    write: &BackwardOutputs<'_>,
    mode: AccumulateMode,
) {
    let (isa, shape) = (layout.isa, &layout.shape);
    let KeyChunk { seen, block, slot, keys } = chunk;
    let head = slot % shape.heads;
    let kv_head = head / (shape.heads / shape.kv_heads);
    let row = seen.own().rows.start + block.first;
    let per_element = values_per_element(isa);
    let (columns, depth) = (keys.keys.next_multiple_of(per_element), packed_len(isa, keys.keys));
    let size = rows.len() * columns;
    let row_pairs = packed_len(isa, rows.len());
    let stride = shape.heads * shape.head_dim;
    let room = 2 * size + rows.len() * depth + 2 * row_pairs * columns;
    with_scratch(room, |scratch| {
        let (floats, scratch) = scratch.split_at_mut(2 * size);
        let (probabilities, score_gradients) = bytemuck::cast_slice_mut(floats).split_at_mut(size);
        let (score_gradients_k_major, scratch) = scratch.split_at_mut(rows.len() * depth);
        let (probability_pairs, score_gradient_pairs) = scratch.split_at_mut(row_pairs * columns);
        let region = OutputRegion { start: 0, stride: columns, columns };
        let (queries, gradient) = (read.queries.left(head, row), read.gradient.left(head, row));
        for (left, right, into) in [
            (queries, &read.keys, &mut *probabilities),
            (gradient, &read.values, &mut *score_gradients),
        ] {
            let target = SharedOutput::new(into);
            // SAFETY: the target is this task's alone.
            unsafe { scores(layout, rows.len(), left, right, kv_head, keys, &target, region) };
        }
        for (index, RowConstants { mean, log_sum }) in rows.iter().enumerate() {
            let visible = layout.visible(seen, block, index);
            let within = |column: usize| column.saturating_sub(keys.column).min(keys.keys);
            let range = within(visible.start)..within(visible.end);
            let line = &mut probabilities[index * columns..][..columns];
            let score_gradient = &mut score_gradients[index * columns..][..columns];
            for line in [&mut *line, &mut *score_gradient] {
                line[..range.start].fill(0.0);
                line[range.end..].fill(0.0);
            }
            let (visible_scores, visible_gradients) =
                (&mut line[range.clone()], &mut score_gradient[range]);
            row_backward(isa, visible_scores, visible_gradients, *log_sum, *mean, shape);
            pack_row(isa, score_gradient, &mut score_gradients_k_major[index * depth..][..depth]);
        }
        for (from, into) in [
            (&*probabilities, &mut *probability_pairs),
            (&*score_gradients, &mut *score_gradient_pairs),
        ] {
            let pairs = from.chunks(per_element * columns).zip(into.chunks_exact_mut(columns));
            for (pair, into) in pairs {
                let second = pair.get(columns..2 * columns);
                pack_k_pair(isa, &pair[..columns], second, into);
            }
        }

        let products = [
            (&*probability_pairs, &read.gradient_pairs, &write.values),
            (&*score_gradient_pairs, &read.query_pairs, &write.keys),
        ];
        for part in head_columns(shape) {
            let left = LeftOperand {
                elements: score_gradients_k_major,
                start: 0,
                row_stride: depth,
                k_stride: 1,
            };
            let right = read.key_pairs.keys(kv_head, keys, part.start);
            let start = row * stride + head * shape.head_dim + part.start;
            let region = OutputRegion { start, stride, columns: part.len() };
            // SAFETY: the caller's promise.
            unsafe {
                multiply_rows(
                    isa,
                    rows.len(),
                    &[GemmTerm { left, right, k_len: depth, right_is_bf16: false }],
                    mode,
                    &write.queries,
                    region,
                );
            }
            for (elements, right, target) in products {
                let left = LeftOperand { elements, start: 0, row_stride: 1, k_stride: columns };
                let right = right.queries(layout, head, seen.own(), block, part.start);
                let start = (slot * layout.tokens() + keys.row) * shape.head_dim + part.start;
                let region = OutputRegion { start, stride: shape.head_dim, columns: part.len() };
                let terms = [GemmTerm { left, right, k_len: row_pairs, right_is_bf16: false }];
                // SAFETY: the caller's promise.
                unsafe {
                    multiply_rows(
                        isa,
                        keys.keys,
                        &terms,
                        AccumulateMode::AddScaled(1.0),
                        target,
                        region,
                    )
                };
            }
        }
    });
}

/// One row: unscaled scores become probabilities, gradients of the probabilities become gradients of
/// the unscaled scores.
fn row_backward(
    isa: Isa,
    scores: &mut [f32],
    score_gradients: &mut [f32],
    log_sum: f32,
    mean: f32,
    shape: &AttentionShape,
) {
    match shape.soft_cap {
        None => plain_row(isa, scores, score_gradients, log_sum, mean, shape.scale),
        Some(cap) => capped_row(isa, scores, score_gradients, log_sum, mean, shape.scale, cap),
    }
}

vector::for_each_isa! {
    /// p = e^(scale · s - log sum); the score's gradient is scale · p · (dp - mean).
    pub fn plain_row(isa, scores: &mut [f32], score_gradients: &mut [f32], log_sum: f32, mean: f32, scale: f32) {
        for (score, score_gradient) in scores.iter_mut().zip(score_gradients) {
            let probability = vector::exp(score.mul_add(scale, -log_sum));
            *score_gradient = scale * probability * (*score_gradient - mean);
            *score = probability;
        }
    }
}

vector::for_each_isa! {
    /// As [`plain_row`] through cap·tanh(s / cap), whose derivative is 1 - tanh².
    pub fn capped_row(isa, scores: &mut [f32], score_gradients: &mut [f32], log_sum: f32, mean: f32, scale: f32, cap: f32) {
        for (score, score_gradient) in scores.iter_mut().zip(score_gradients) {
            let tanh = vector::tanh(*score * scale / cap);
            let probability = vector::exp(cap * tanh - log_sum);
            *score_gradient = scale * probability * (*score_gradient - mean) * (1.0 - tanh * tanh);
            *score = probability;
        }
    }
}
