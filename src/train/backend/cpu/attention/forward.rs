//! Attention of a packed batch, forward.

use std::sync::Arc;

use rayon::prelude::*;

use super::layout::{BatchLayout, QueryBlock, VisibleKeys};
use super::packed_heads::{KMajor, KPairs, TransposedPanels};
use super::products::{AttentionInputs, QUERY_BLOCK, multiply_over_keys, scores};
use crate::train::backend::cpu::buffer_pool::BufferPool;
use crate::train::backend::cpu::buffer_pool::with_scratch;
use crate::train::backend::cpu::gemm::packed_element::{pack_row, packed_len};
use crate::train::backend::cpu::gemm::tile::{OutputRegion, SharedOutput};
use crate::train::backend::cpu::isa::Isa;
use crate::train::backend::cpu::vector;
use crate::train::backend::{AttentionShape, Segment};

/// The packed operands that all tasks read.
struct PackedOperands {
    queries: KMajor,
    keys: TransposedPanels,
    values: KPairs,
}

/// Attention of a packed batch. `output` is `[tokens, heads · head_dim]`; `log_sums` gets the
/// log-sum-exp of each row of scores, `[heads, tokens]`, for the backward pass.
pub fn forward(
    isa: Isa,
    pool: &Arc<BufferPool>,
    inputs: &AttentionInputs<'_>,
    segments: &[Segment],
    shape: &AttentionShape,
    output: &mut [f32],
    log_sums: &mut [f32],
) {
    let layout = BatchLayout::new(isa, segments, shape);
    let read = PackedOperands {
        queries: KMajor::new(&layout, pool, inputs.queries, shape.heads),
        keys: TransposedPanels::new(&layout, pool, inputs.keys, shape.kv_heads),
        values: KPairs::new(&layout, pool, inputs.values, shape.kv_heads),
    };
    let (output, log_sums) = (SharedOutput::new(output), SharedOutput::new(log_sums));
    let mut tasks = Vec::new();
    for seen in &layout.segments {
        let queries = seen.own().rows.len();
        // The last queries see most keys: they start first, so that threads end together.
        for first in (0..queries).step_by(QUERY_BLOCK).rev() {
            for head in 0..shape.heads {
                tasks.push((seen, layout.block(seen, first, QUERY_BLOCK), head));
            }
        }
    }
    tasks.par_iter().for_each(|(seen, block, head)| {
        // SAFETY: each task has queries and a head of its own.
        unsafe { block_forward(&layout, seen, block, *head, &read, &output, &log_sums) };
    });
}

/// One head of a block of queries.
///
/// # Safety
/// Nothing else reads or writes these rows of this head meanwhile.
unsafe fn block_forward(
    layout: &BatchLayout,
    seen: &VisibleKeys,
    block: &QueryBlock,
    head: usize,
    read: &PackedOperands,
    output: &SharedOutput<'_>,
    log_sums: &SharedOutput<'_>,
) {
    let (isa, shape) = (layout.isa, &layout.shape);
    let kv_head = head / (shape.heads / shape.kv_heads);
    let row = seen.own().rows.start + block.first;
    let (columns, depth) = (block.columns, packed_len(isa, block.columns));
    let tokens = layout.tokens();
    let mut inverse_sums = [0.0; QUERY_BLOCK];
    with_scratch(block.rows * (columns + depth), |scratch| {
        let (floats, elements) = scratch.split_at_mut(block.rows * columns);
        let rows: &mut [f32] = bytemuck::cast_slice_mut(floats);
        let target = SharedOutput::new(rows);
        for slice in layout.slices(seen, block) {
            let left = read.queries.left(head, row);
            let region = OutputRegion { start: slice.column, stride: columns, columns };
            // SAFETY: the target is this task's alone.
            unsafe {
                let rows = block.rows;
                scores(layout, rows, left, &read.keys, kv_head, &slice, &target, region);
            }
        }
        let both = rows.chunks_exact_mut(columns).zip(elements.chunks_exact_mut(depth));
        for (index, (row_scores, packed)) in both.enumerate() {
            let range = layout.visible(seen, block, index);
            row_scores[..range.start].fill(0.0);
            row_scores[range.end..].fill(0.0);
            let mut scale = shape.scale;
            if let Some(cap) = shape.soft_cap {
                vector::scale(isa, &mut row_scores[range.clone()], scale);
                vector::soft_cap(isa, &mut row_scores[range.clone()], cap);
                scale = 1.0;
            }
            for gap in layout.gaps(seen, block).filter(|gap| range.contains(gap)) {
                row_scores[gap] = f32::NEG_INFINITY;
            }
            let visible = &mut row_scores[range];
            let most = scale * vector::maximum(isa, visible);
            let sum = vector::exp_and_sum(isa, visible, scale, most);
            inverse_sums[index] = 1.0 / sum;
            pack_row(isa, row_scores, packed);
            // SAFETY: the caller's promise.
            unsafe { log_sums.slice_mut(head * tokens + row + index, 1)[0] = most + sum.ln() };
        }
        let stride = shape.heads * shape.head_dim;
        let region = OutputRegion {
            start: row * stride + head * shape.head_dim,
            stride,
            columns: shape.head_dim,
        };
        // SAFETY: the caller's promise.
        unsafe {
            multiply_over_keys(
                layout,
                seen,
                block,
                elements,
                &read.values,
                kv_head,
                output,
                region,
            );
            // The division by the sum is done on the output, whose rows are shorter than those of probabilities.
            for (index, inverse) in inverse_sums[..block.rows].iter().enumerate() {
                let row = output.slice_mut(region.start + index * stride, shape.head_dim);
                vector::scale(isa, row, *inverse);
            }
        }
    });
}
