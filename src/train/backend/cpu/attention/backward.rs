//! Attention of a packed batch, backward.

use std::sync::Arc;

use rayon::prelude::*;

use super::layout::{Across, Along, Block, Layout, Panels, Seen};
use super::{BLOCK, Inputs, Shape, head_columns, multiply_over_keys, scores};
use crate::train::backend::Segment;
use crate::train::backend::cpu::isa::Isa;
use crate::train::backend::cpu::matrix::pass;
use crate::train::backend::cpu::memory::{Matrix, Pool};
use crate::train::backend::cpu::scratch::with_words;
use crate::train::backend::cpu::tile::{Left, Place, Store, Target, Term};
use crate::train::backend::cpu::vector;
use crate::train::backend::cpu::words::{across, along, numbers_in_word, words};

/// Gradients of queries, keys and values, in the layouts of [`Inputs`]; all are overwritten.
pub struct Gradients<'a> {
    /// Of the queries.
    pub queries: &'a mut [f32],
    /// Of the keys.
    pub keys: &'a mut [f32],
    /// Of the values.
    pub values: &'a mut [f32],
}

/// What forward made, and the gradient of its output.
pub struct Made<'a> {
    /// `[tokens, heads · head_dim]`.
    pub output: &'a [f32],
    /// `[heads, tokens]`.
    pub log_sums: &'a [f32],
    /// As `output`.
    pub gradient: &'a [f32],
}

/// What a task reads.
struct Read<'a> {
    made: Made<'a>,
    queries: Along,
    queries_across: Across,
    keys: Panels,
    keys_across: Across,
    values: Panels,
    gradient: Along,
    gradient_across: Across,
}

/// What a task writes: gradients of queries in their place, those of keys and values as each query
/// head has them, `[heads, tokens, head_dim]`.
struct Write<'a> {
    queries: Target<'a>,
    keys: Target<'a>,
    values: Target<'a>,
}

/// Backward of [`super::forward::forward`].
pub fn backward(
    isa: Isa,
    pool: &Arc<Pool>,
    inputs: &Inputs<'_>,
    segments: &[Segment],
    shape: &Shape,
    made: Made<'_>,
    gradients: Gradients<'_>,
) {
    let layout = Layout::new(isa, segments, shape);
    let (heads, kv_heads) = (shape.heads, shape.kv_heads);
    let read = Read {
        queries: Along::new(&layout, pool, inputs.queries, heads),
        queries_across: Across::new(&layout, pool, inputs.queries, heads),
        keys: Panels::new(&layout, pool, inputs.keys, kv_heads),
        keys_across: Across::new(&layout, pool, inputs.keys, kv_heads),
        values: Panels::new(&layout, pool, inputs.values, kv_heads),
        gradient: Along::new(&layout, pool, made.gradient, heads),
        gradient_across: Across::new(&layout, pool, made.gradient, heads),
        made,
    };
    let size = layout.tokens() * shape.head_dim;
    let mut of_heads = [pool.take(heads, size), pool.take(heads, size)];
    {
        let [keys, values] = &mut of_heads;
        let write = Write {
            queries: Target::new(gradients.queries),
            keys: Target::new(keys.values_mut()),
            values: Target::new(values.values_mut()),
        };
        let mut tasks = Vec::new();
        for (index, seen) in layout.segments.iter().enumerate() {
            if seen.root == index {
                tasks.extend((0..heads).map(|head| (index, head)));
            }
        }
        tasks.par_iter().for_each(|(root, head)| {
            // What has one root adds to the same keys, and is one task's.
            let of_root = layout.segments.iter().filter(|seen| seen.root == *root);
            for seen in of_root.clone() {
                let rows = &seen.own().rows;
                let start = (head * layout.tokens() + rows.start) * shape.head_dim;
                for target in [&write.keys, &write.values] {
                    // SAFETY: these rows of this head are this task's.
                    unsafe { target.part(start, rows.len() * shape.head_dim).fill(0.0) };
                }
            }
            for seen in of_root {
                for first in (0..seen.own().rows.len()).step_by(BLOCK) {
                    let block = layout.block(seen, first, BLOCK);
                    // SAFETY: as above.
                    unsafe { block_backward(&layout, seen, &block, *head, &read, shape, &write) };
                }
            }
        });
    }
    let [keys, values] = &of_heads;
    gather(isa, &layout, keys, shape, gradients.keys);
    gather(isa, &layout, values, shape, gradients.values);
}

/// Adds up the gradients that the query heads of each key head have for it.
fn gather(isa: Isa, layout: &Layout, of_heads: &Matrix, shape: &Shape, into: &mut [f32]) {
    let group = shape.heads / shape.kv_heads;
    let (tokens, width) = (layout.tokens(), shape.head_dim);
    let rows = into.par_chunks_exact_mut(shape.kv_heads * width).with_min_len(16);
    rows.enumerate().for_each(|(row, into)| {
        for (kv_head, into) in into.chunks_exact_mut(width).enumerate() {
            let of = |head: usize| &of_heads.values()[(head * tokens + row) * width..][..width];
            into.copy_from_slice(of(kv_head * group));
            for head in kv_head * group + 1..(kv_head + 1) * group {
                vector::add_scaled(isa, into, of(head), 1.0);
            }
        }
    });
}

/// One head of a block of queries.
///
/// # Safety
/// Nothing else reads or writes the rows of this head in the block, nor those of the keys that it
/// sees, meanwhile.
unsafe fn block_backward(
    layout: &Layout,
    seen: &Seen,
    block: &Block,
    head: usize,
    read: &Read<'_>,
    shape: &Shape,
    write: &Write<'_>,
) {
    let isa = layout.isa;
    let kv_head = head / (shape.heads / shape.kv_heads);
    let row = seen.own().rows.start + block.first;
    let columns = block.columns;
    let (size, depth) = (block.rows * columns, words(isa, columns));
    let rows_across = words(isa, block.rows);
    let stride = shape.heads * shape.head_dim;
    let offset = head * shape.head_dim;
    let room = 2 * size + block.rows * depth + 2 * rows_across * columns;
    with_words(room, |space| {
        let (floats, space) = space.split_at_mut(2 * size);
        let (lines, slopes) = bytemuck::cast_slice_mut(floats).split_at_mut(size);
        let (slopes_along, space) = space.split_at_mut(block.rows * depth);
        let (lines_across, slopes_across) = space.split_at_mut(rows_across * columns);
        scores(layout, seen, block, read.queries.left(head, row), &read.keys, kv_head, lines);
        scores(layout, seen, block, read.gradient.left(head, row), &read.values, kv_head, slopes);
        for index in 0..block.rows {
            let range = layout.visible(seen, block, index);
            let line = &mut lines[index * columns..][..columns];
            let slope = &mut slopes[index * columns..][..columns];
            for gap in layout.gaps(seen, block) {
                (line[gap], slope[gap]) = (0.0, 0.0);
            }
            for line in [&mut *line, &mut *slope] {
                line[..range.start].fill(0.0);
                line[range.end..].fill(0.0);
            }
            vector::scale(isa, &mut line[range.clone()], shape.scale);
            // Rows of output · gradient: the mean of the score gradients under the probabilities.
            let of_row = |values: &'_ [f32]| (row + index) * stride + offset..values.len();
            let output = &read.made.output[of_row(read.made.output)][..shape.head_dim];
            let gradient = &read.made.gradient[of_row(read.made.gradient)][..shape.head_dim];
            let mean = vector::dot(isa, output, gradient);
            let log_sum = read.made.log_sums[head * layout.tokens() + row + index];
            let (line_seen, slope_seen) = (&mut line[range.clone()], &mut slope[range.clone()]);
            row_backward(isa, line_seen, slope_seen, log_sum, mean, shape);
            for gap in layout.gaps(seen, block) {
                (line[gap], slope[gap]) = (0.0, 0.0);
            }
            along(isa, slope, &mut slopes_along[index * depth..][..depth]);
        }
        let per_word = numbers_in_word(isa);
        for (from, into) in [(&*lines, &mut *lines_across), (&*slopes, &mut *slopes_across)] {
            let pairs = from.chunks(per_word * columns).zip(into.chunks_exact_mut(columns));
            for (pair, into) in pairs {
                let second = pair.get(columns..2 * columns);
                across(isa, &pair[..columns], second, into);
            }
        }

        let place = Place { start: row * stride + offset, stride, columns: shape.head_dim };
        let (keys, into) = (&read.keys_across, &write.queries);
        // SAFETY: the caller's promise.
        unsafe {
            multiply_over_keys(layout, seen, block, slopes_along, keys, kv_head, into, place)
        };
        let products = [
            (&*lines_across, &read.gradient_across, &write.values),
            (&*slopes_across, &read.queries_across, &write.keys),
        ];
        for piece in layout.pieces(seen, block) {
            for (words, right, target) in products {
                let left =
                    Left { words, start: piece.column, row_stride: 1, depth_stride: columns };
                for part in head_columns(shape) {
                    let right = right.queries(layout, head, seen.own(), block, part.start);
                    let start = (head * layout.tokens() + piece.row) * shape.head_dim + part.start;
                    let place = Place { start, stride: shape.head_dim, columns: part.len() };
                    let terms = [Term { left, right, depth: rows_across }];
                    // SAFETY: the caller's promise.
                    unsafe { pass(isa, piece.keys, &terms, Store::Add(1.0), target, place) };
                }
            }
        }
    });
}

/// One row: scaled scores become probabilities, gradients of the probabilities become gradients of
/// the unscaled scores.
fn row_backward(
    isa: Isa,
    scores: &mut [f32],
    slopes: &mut [f32],
    log_sum: f32,
    mean: f32,
    shape: &Shape,
) {
    match shape.soft_cap {
        None => plain_row(isa, scores, slopes, log_sum, mean, shape.scale),
        Some(cap) => capped_row(isa, scores, slopes, log_sum, mean, shape.scale, cap),
    }
}

vector::for_each_isa! {
    /// p = e^(s - log sum); the score's gradient is scale · p · (slope - mean).
    pub fn plain_row(isa, scores: &mut [f32], slopes: &mut [f32], log_sum: f32, mean: f32, scale: f32) {
        for (score, slope) in scores.iter_mut().zip(slopes) {
            let probability = vector::exp(*score - log_sum);
            *slope = scale * probability * (*slope - mean);
            *score = probability;
        }
    }
}

vector::for_each_isa! {
    /// As [`plain_row`] through cap·tanh(s / cap), whose derivative is 1 - tanh².
    pub fn capped_row(isa, scores: &mut [f32], slopes: &mut [f32], log_sum: f32, mean: f32, scale: f32, cap: f32) {
        for (score, slope) in scores.iter_mut().zip(slopes) {
            let bent = vector::tanh(*score / cap);
            let probability = vector::exp(cap * bent - log_sum);
            *slope = scale * probability * (*slope - mean) * (1.0 - bent * bent);
            *score = probability;
        }
    }
}
