//! Attention of texts' new tokens over what their caches hold: for answering, forward only.
//!
//! A task is some lines of scores of one text: query rows of one head, or, of a text with one new
//! token, the heads that share keys. A line comes out alike however the lines are cut into tasks,
//! and however the text was cut into passes.

use std::ops::Range;

use rayon::prelude::*;

use super::{BLOCK, head_columns};
use crate::train::backend::AttentionShape;
use crate::train::backend::cpu::attention::kv_cache::{Cache, PAGE, pages};
use crate::train::backend::cpu::buffer_pool::with_scratch;
use crate::train::backend::cpu::gemm::matmul::{MAX_TERMS, multiply_rows};
use crate::train::backend::cpu::gemm::packed_element::{pack_row, packed_len};
use crate::train::backend::cpu::gemm::tile::{
    AccumulateMode, GemmTerm, LeftOperand, OutputRegion, SharedOutput,
};
use crate::train::backend::cpu::isa::Isa;
use crate::train::backend::cpu::vector;

/// Products of numbers that are worth waking other threads.
const WORTH_SHARING: usize = 200_000;

/// A text's new tokens: rows of the queries, and the cache, which holds their keys already though it
/// does not count them yet.
pub struct NewRows<'a> {
    /// Rows of the queries.
    pub rows: Range<usize>,
    /// Keys and values up to the last of them.
    pub cache: &'a Cache,
}

/// Lines of scores of one text.
#[derive(Clone)]
struct Task {
    text: usize,
    /// From the text's first new row.
    rows: Range<usize>,
    heads: Range<usize>,
}

/// Attention in layer `layer`; `queries` and `output` are `[rows, heads · head_dim]`.
pub fn forward(
    isa: Isa,
    layer: usize,
    queries: &[f32],
    texts: &[NewRows<'_>],
    shape: &AttentionShape,
    output: &mut [f32],
) {
    let group = shape.heads / shape.kv_heads;
    let mut tasks = Vec::new();
    let mut products = 0;
    let enough = 4 * rayon::current_num_threads();
    for (text, new) in texts.iter().enumerate() {
        let count = new.rows.len();
        products += 2 * count * (new.cache.length() + count) * shape.heads * shape.head_dim;
        // Heads that share keys read them once, where that leaves work for every thread.
        let together = count == 1 && group <= BLOCK && texts.len() * shape.kv_heads >= enough;
        let heads = if together { group } else { 1 };
        // The last queries see most: they begin first, so that no thread is left with them alone.
        for first in (0..count).step_by(BLOCK).rev() {
            for head in (0..shape.heads).step_by(heads) {
                let rows = first..(first + BLOCK).min(count);
                tasks.push(Task { text, rows, heads: head..head + heads });
            }
        }
    }
    let output = SharedOutput::new(output);
    let run = |task: &Task| {
        // SAFETY: each task has lines of its own.
        unsafe { task.run(isa, layer, queries, &texts[task.text], shape, &output) };
    };
    if products < WORTH_SHARING {
        tasks.iter().for_each(run);
    } else {
        tasks.par_iter().for_each(run);
    }
}

impl Task {
    /// # Safety
    /// Nothing else reads or writes these rows of these heads of the output meanwhile.
    unsafe fn run(
        &self,
        isa: Isa,
        layer: usize,
        queries: &[f32],
        text: &NewRows<'_>,
        shape: &AttentionShape,
        output: &SharedOutput<'_>,
    ) {
        let head_dim = shape.head_dim;
        let stride = shape.heads * head_dim;
        let kv_head = self.heads.start / (shape.heads / shape.kv_heads);
        let before = text.cache.length();
        let first_key = shape.first_key(before + self.rows.start);
        let seen = pages(&(first_key..before + self.rows.end));
        let base = seen.start * PAGE;
        let columns = seen.len() * PAGE;
        let lines = self.rows.len() * self.heads.len();
        // Lines are rows of one head, or heads of one row.
        let line_stride = if self.heads.len() > 1 { head_dim } else { stride };
        let start = (text.rows.start + self.rows.start) * stride + self.heads.start * head_dim;
        let is_bf16 = isa == Isa::Bf16;
        let (query_width, line_width) = (packed_len(isa, head_dim), packed_len(isa, columns));
        let more = if is_bf16 { query_width + line_width } else { 0 };
        with_scratch(lines * (columns + more), |space| {
            let (floats, rest) = space.split_at_mut(lines * columns);
            let (query_words, line_words) =
                rest.split_at_mut(if is_bf16 { lines * query_width } else { 0 });
            let left = if is_bf16 {
                for (line, into) in query_words.chunks_exact_mut(query_width).enumerate() {
                    pack_row(isa, &queries[start + line * line_stride..][..head_dim], into);
                }
                LeftOperand {
                    elements: query_words,
                    start: 0,
                    row_stride: query_width,
                    k_stride: 1,
                }
            } else {
                let elements = bytemuck::cast_slice(queries);
                LeftOperand { elements, start, row_stride: line_stride, k_stride: 1 }
            };
            let scores: &mut [f32] = bytemuck::cast_slice_mut(floats);
            let target = SharedOutput::new(scores);
            for page in seen.clone() {
                let right = text.cache.keys(layer, kv_head, page);
                let terms = [GemmTerm { left, right, k_len: query_width, right_is_bf16: false }];
                let region =
                    OutputRegion { start: page * PAGE - base, stride: columns, columns: PAGE };
                // SAFETY: the scores are this task's alone.
                unsafe {
                    multiply_rows(isa, lines, &terms, AccumulateMode::Overwrite, &target, region)
                };
            }
            let mut inverse_sums = [0.0; BLOCK];
            let inverse_sums = &mut inverse_sums[..lines];
            for (line, scores) in scores.chunks_exact_mut(columns).enumerate() {
                let row = if self.heads.len() > 1 { 0 } else { line };
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
                inverse_sums[line] = 1.0 / vector::exp_and_sum(isa, visible, scale, most);
                if is_bf16 {
                    pack_row(isa, scores, &mut line_words[line * line_width..][..line_width]);
                }
            }
            let weights: &[u32] = if is_bf16 { line_words } else { bytemuck::cast_slice(scores) };
            for part in head_columns(shape) {
                let region = OutputRegion {
                    start: start + part.start,
                    stride: line_stride,
                    columns: part.len(),
                };
                let mut terms = [GemmTerm::default(); MAX_TERMS];
                let (mut count, mut mode) = (0, AccumulateMode::Overwrite);
                for page in seen.clone() {
                    terms[count] = GemmTerm {
                        left: LeftOperand {
                            elements: weights,
                            start: packed_len(isa, page * PAGE - base),
                            row_stride: line_width,
                            k_stride: 1,
                        },
                        right: text.cache.values(layer, kv_head, page, part.start),
                        k_len: packed_len(isa, PAGE),
                        right_is_bf16: false,
                    };
                    count += 1;
                    // Rounds end at the same pages whichever page is the first that is seen.
                    if (page + 1).is_multiple_of(MAX_TERMS) || page + 1 == seen.end {
                        // SAFETY: the caller's promise.
                        unsafe { multiply_rows(isa, lines, &terms[..count], mode, output, region) };
                        (count, mode) = (0, AccumulateMode::AddScaled(1.0));
                    }
                }
            }
            for (line, inverse) in inverse_sums.iter().enumerate() {
                // SAFETY: the caller's promise.
                let row = unsafe { output.slice_mut(start + line * line_stride, head_dim) };
                vector::scale(isa, row, *inverse);
            }
        });
    }
}
