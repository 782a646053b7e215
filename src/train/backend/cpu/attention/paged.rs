//! Paged attention: new tokens of sequences attend_cached to the pages of their KV caches. Forward only.
//!
//! A task is a few rows of scores of one sequence: query rows of one head, or, for a single new token, the
//! heads that share keys. A row's result depends neither on how rows are split into tasks nor on how the
//! sequence was split into steps.

use std::ops::Range;

use rayon::prelude::*;

use super::kv_cache::{CpuKvCache, PAGE_TOKENS, pages};
use super::products::{QUERY_BLOCK, head_columns};
use crate::train::backend::AttentionShape;
use crate::train::backend::cpu::buffer_pool::with_scratch;
use crate::train::backend::cpu::gemm::matmul::{MAX_TERMS, multiply_rows};
use crate::train::backend::cpu::gemm::packed_element::{pack_row, packed_len};
use crate::train::backend::cpu::gemm::tile::{
    AccumulateMode, GemmTerm, LeftOperand, OutputRegion, SharedOutput,
};
use crate::train::backend::cpu::isa::Isa;
use crate::train::backend::cpu::vector;

/// Multiplications from which on other threads take part.
const MIN_PARALLEL_PRODUCTS: usize = 200_000;

/// New tokens of a sequence. The cache holds their keys already but does not count them yet.
pub struct NewTokens<'a> {
    /// Rows of the queries.
    pub rows: Range<usize>,
    /// Keys and values up to the last new token.
    pub cache: &'a CpuKvCache,
}

/// Rows of scores of one sequence.
#[derive(Clone)]
struct PagedTask {
    sequence: usize,
    /// Counted from the sequence's first new token.
    rows: Range<usize>,
    heads: Range<usize>,
}

/// Attention in layer `layer`; `queries` and `output` are `[rows, heads · head_dim]`.
pub fn forward(
    isa: Isa,
    layer: usize,
    queries: &[f32],
    sequences: &[NewTokens<'_>],
    shape: &AttentionShape,
    output: &mut [f32],
) {
    let group = shape.heads / shape.kv_heads;
    let mut tasks = Vec::new();
    let mut products = 0;
    let enough = 4 * rayon::current_num_threads();
    for (sequence, new) in sequences.iter().enumerate() {
        let count = new.rows.len();
        products += 2 * count * (new.cache.length() + count) * shape.heads * shape.head_dim;
        // Heads that share keys read them once, where that leaves work for every thread.
        let together =
            count == 1 && group <= QUERY_BLOCK && sequences.len() * shape.kv_heads >= enough;
        let heads = if together { group } else { 1 };
        // The last queries see most keys: they start first, so that threads end together.
        for first in (0..count).step_by(QUERY_BLOCK).rev() {
            for head in (0..shape.heads).step_by(heads) {
                let rows = first..(first + QUERY_BLOCK).min(count);
                tasks.push(PagedTask { sequence, rows, heads: head..head + heads });
            }
        }
    }
    let output = SharedOutput::new(output);
    let run = |task: &PagedTask| {
        // SAFETY: each task has rows of heads of its own.
        unsafe { task.run(isa, layer, queries, &sequences[task.sequence], shape, &output) };
    };
    if products < MIN_PARALLEL_PRODUCTS {
        tasks.iter().for_each(run);
    } else {
        tasks.par_iter().for_each(run);
    }
}

impl PagedTask {
    /// # Safety
    /// Nothing else reads or writes these rows of these heads of the output meanwhile.
    unsafe fn run(
        &self,
        isa: Isa,
        layer: usize,
        queries: &[f32],
        sequence: &NewTokens<'_>,
        shape: &AttentionShape,
        output: &SharedOutput<'_>,
    ) {
        let head_dim = shape.head_dim;
        let stride = shape.heads * head_dim;
        let kv_head = self.heads.start / (shape.heads / shape.kv_heads);
        let before = sequence.cache.length();
        let first_key = shape.first_key(before + self.rows.start);
        let visible_pages = pages(&(first_key..before + self.rows.end));
        let base = visible_pages.start * PAGE_TOKENS;
        let columns = visible_pages.len() * PAGE_TOKENS;
        let score_rows = self.rows.len() * self.heads.len();
        // Rows of scores are rows of one head, or heads of one row.
        let score_row_stride = if self.heads.len() > 1 { head_dim } else { stride };
        let start = (sequence.rows.start + self.rows.start) * stride + self.heads.start * head_dim;
        let is_bf16 = isa == Isa::Bf16;
        let (query_width, packed_width) = (packed_len(isa, head_dim), packed_len(isa, columns));
        let more = if is_bf16 { query_width + packed_width } else { 0 };
        with_scratch(score_rows * (columns + more), |scratch| {
            let (floats, rest) = scratch.split_at_mut(score_rows * columns);
            let (packed_queries, packed_weights) =
                rest.split_at_mut(if is_bf16 { score_rows * query_width } else { 0 });
            let left = if is_bf16 {
                for (index, into) in packed_queries.chunks_exact_mut(query_width).enumerate() {
                    pack_row(isa, &queries[start + index * score_row_stride..][..head_dim], into);
                }
                LeftOperand {
                    elements: packed_queries,
                    start: 0,
                    row_stride: query_width,
                    k_stride: 1,
                }
            } else {
                let elements = bytemuck::cast_slice(queries);
                LeftOperand { elements, start, row_stride: score_row_stride, k_stride: 1 }
            };
            let scores: &mut [f32] = bytemuck::cast_slice_mut(floats);
            let target = SharedOutput::new(scores);
            for page in visible_pages.clone() {
                let right = sequence.cache.keys(layer, kv_head, page);
                let terms = [GemmTerm { left, right, k_len: query_width, right_is_bf16: false }];
                let region = OutputRegion {
                    start: page * PAGE_TOKENS - base,
                    stride: columns,
                    columns: PAGE_TOKENS,
                };
                // SAFETY: the scores are this task's alone.
                unsafe {
                    multiply_rows(
                        isa,
                        score_rows,
                        &terms,
                        AccumulateMode::Overwrite,
                        &target,
                        region,
                    )
                };
            }
            let mut inverse_sums = [0.0; QUERY_BLOCK];
            let inverse_sums = &mut inverse_sums[..score_rows];
            for (index, scores) in scores.chunks_exact_mut(columns).enumerate() {
                let row = if self.heads.len() > 1 { 0 } else { index };
                let position = before + self.rows.start + row;
                let visible = shape.first_key(position) - base..position + 1 - base;
                scores[..visible.start].fill(0.0);
                scores[visible.end..].fill(0.0);
                let visible = &mut scores[visible];
                let mut scale = shape.scale;
                if let Some(cap) = shape.soft_cap {
                    vector::scale(isa, visible, scale);
                    vector::soft_cap(isa, visible, cap);
                    scale = 1.0;
                }
                let most = scale * vector::maximum(isa, visible);
                inverse_sums[index] = 1.0 / vector::exp_and_sum(isa, visible, scale, most);
                if is_bf16 {
                    pack_row(
                        isa,
                        scores,
                        &mut packed_weights[index * packed_width..][..packed_width],
                    );
                }
            }
            let weights: &[u32] =
                if is_bf16 { packed_weights } else { bytemuck::cast_slice(scores) };
            for part in head_columns(shape) {
                let region = OutputRegion {
                    start: start + part.start,
                    stride: score_row_stride,
                    columns: part.len(),
                };
                let mut terms = [GemmTerm::default(); MAX_TERMS];
                let (mut count, mut mode) = (0, AccumulateMode::Overwrite);
                for page in visible_pages.clone() {
                    terms[count] = GemmTerm {
                        left: LeftOperand {
                            elements: weights,
                            start: packed_len(isa, page * PAGE_TOKENS - base),
                            row_stride: packed_width,
                            k_stride: 1,
                        },
                        right: sequence.cache.values(layer, kv_head, page, part.start),
                        k_len: packed_len(isa, PAGE_TOKENS),
                        right_is_bf16: false,
                    };
                    count += 1;
                    // Batches end at the same pages whichever page is the first visible one.
                    if (page + 1).is_multiple_of(MAX_TERMS) || page + 1 == visible_pages.end {
                        // SAFETY: the caller's promise.
                        unsafe {
                            multiply_rows(isa, score_rows, &terms[..count], mode, output, region)
                        };
                        (count, mode) = (0, AccumulateMode::AddScaled(1.0));
                    }
                }
            }
            for (index, inverse) in inverse_sums.iter().enumerate() {
                // SAFETY: the caller's promise.
                let row = unsafe { output.slice_mut(start + index * score_row_stride, head_dim) };
                vector::scale(isa, row, *inverse);
            }
        });
    }
}
