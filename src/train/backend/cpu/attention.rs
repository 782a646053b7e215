//! Causal attention over the segments of a packed batch, forward and backward.
//!
//! One task is one query head of one segment, with copies of the keys that it sees: those of shared
//! prefixes before it, then its own. The gradients of a prefix's keys gather from all that see it.
//! A task works through blocks of query rows; a block's
//! scores against all keys it may see stand in memory at once (a few hundred kilobytes), never the
//! whole matrix. Forward keeps only the log-sum-exp of each row; backward computes the
//! probabilities again from it (Dao et al. 2022, "FlashAttention", without its inner tiling).

use std::ops::Range;

use rayon::prelude::*;

use super::isa::Isa;
use super::tile::{Left, PANEL, Right, TILE_ROWS, Tile, UNIT, multiply};
use super::vector;
use crate::train::backend::Segment;

/// Query rows of one block: enough depth for the products of the backward pass.
const BLOCK: usize = 48;

/// How attention is done in one layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Shape {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Factor on the scores.
    pub scale: f32,
    /// A query sees itself and the `window - 1` tokens before it; `None` sees all before it.
    pub window: Option<usize>,
    /// Scores s become cap·tanh(s / cap).
    pub soft_cap: Option<f32>,
}

impl Shape {
    /// First key that the query at position `row` of its text sees.
    fn first_key(&self, row: usize) -> usize {
        self.window.map_or(0, |window| (row + 1).saturating_sub(window))
    }

    /// Width of a head in whole units, as the copies of a task have it.
    fn padded(&self) -> usize {
        self.head_dim.next_multiple_of(UNIT)
    }
}

/// Copies of one head's rows, as the tiles want them.
#[derive(Default)]
struct Head {
    /// `[tokens, padded head_dim]`.
    rows: Vec<f32>,
    /// Its transpose in panels: `[⌈tokens / PANEL⌉][head_dim][PANEL]`.
    panels: Vec<f32>,
}

impl Head {
    /// Copies the head at `offset` of the rows in `runs`, which are `stride` floats apart.
    fn rows_of(
        values: &[f32],
        runs: impl Iterator<Item = Range<usize>> + Clone,
        stride: usize,
        offset: usize,
        shape: &Shape,
    ) -> Self {
        let count: usize = runs.clone().map(|run| run.len()).sum();
        let mut rows = vec![0.0; count * shape.padded()];
        for (row, copy) in runs.flatten().zip(rows.chunks_exact_mut(shape.padded())) {
            let from = &values[row * stride + offset..][..shape.head_dim];
            copy[..shape.head_dim].copy_from_slice(from);
        }
        Self { rows, panels: Vec::new() }
    }

    /// Adds the transpose.
    fn with_panels(mut self, tokens: usize, shape: &Shape) -> Self {
        let panel_size = shape.head_dim * PANEL;
        self.panels = vec![0.0; tokens.div_ceil(PANEL) * panel_size];
        for (token, row) in self.rows.chunks_exact(shape.padded()).enumerate() {
            let start = token / PANEL * panel_size + token % PANEL;
            for (column, value) in row[..shape.head_dim].iter().enumerate() {
                self.panels[start + column * PANEL] = *value;
            }
        }
        self
    }
}

/// A block of query rows and the keys that any of them sees, rounded to whole panels.
struct Block {
    first: usize,
    rows: usize,
    /// Keys before the task's first query.
    before: usize,
    first_key: usize,
    keys: usize,
}

impl Block {
    fn new(first: usize, task: &Task<'_>, shape: &Shape) -> Self {
        let rows = (task.queries() - first).min(BLOCK);
        let before = task.keys() - task.queries();
        let first_key = shape.first_key(before + first) / PANEL * PANEL;
        let keys = (before + first + rows).next_multiple_of(PANEL) - first_key;
        Self { first, rows, before, first_key, keys }
    }
}

/// `out[rows, keys] = queries · keysᵀ` for one block.
fn scores(isa: Isa, block: &Block, queries: &[f32], keys: &Head, shape: &Shape, out: &mut [f32]) {
    let mut tile: Tile = [0.0; TILE_ROWS * PANEL];
    for panel in 0..block.keys / PANEL {
        let b = Right {
            values: &keys.panels,
            start: (block.first_key / PANEL + panel) * shape.head_dim * PANEL,
            stride: PANEL,
        };
        for row in (0..block.rows).step_by(TILE_ROWS) {
            let rows = (block.rows - row).min(TILE_ROWS);
            let a = Left {
                values: queries,
                start: (block.first + row) * shape.padded(),
                row_stride: shape.padded(),
                depth_stride: 1,
            };
            multiply(isa, rows, PANEL / UNIT, shape.head_dim, a, b, &mut tile);
            for part in 0..rows {
                let into = &mut out[(row + part) * block.keys + panel * PANEL..][..PANEL];
                into.copy_from_slice(&tile[part * PANEL..][..PANEL]);
            }
        }
    }
}

/// `into[into_first + row] += Σ_depth a(row, depth) · b[b_first + depth]` over rows of padded heads.
#[expect(clippy::too_many_arguments, reason = "the coordinates of a product in three matrices")]
fn add_product(
    isa: Isa,
    rows: usize,
    depth: usize,
    a: Left<'_>,
    b: &[f32],
    b_first: usize,
    into: &mut [f32],
    into_first: usize,
    shape: &Shape,
) {
    let padded = shape.padded();
    let mut tile: Tile = [0.0; TILE_ROWS * PANEL];
    for column in (0..padded).step_by(PANEL) {
        let width = (padded - column).min(PANEL);
        let right = Right { values: b, start: b_first * padded + column, stride: padded };
        for row in (0..rows).step_by(TILE_ROWS) {
            let height = (rows - row).min(TILE_ROWS);
            let left = Left { start: a.start + row * a.row_stride, ..a };
            multiply(isa, height, width / UNIT, depth, left, right, &mut tile);
            for part in 0..height {
                let start = (into_first + row + part) * padded + column;
                vector::add_scaled(
                    isa,
                    &mut into[start..][..width],
                    &tile[part * PANEL..][..width],
                    1.0,
                );
            }
        }
    }
}

/// Scales, caps and masks one row of scores in place: keys that the query does not see become
/// negative infinity only where the caller needs them; returns the range that it sees, relative to
/// the block's first key.
fn visible(block: &Block, row: usize, shape: &Shape) -> Range<usize> {
    let query = block.before + block.first + row;
    shape.first_key(query) - block.first_key..query + 1 - block.first_key
}

/// Attention of one head over one segment: output rows (padded) and log-sum-exps.
fn forward_head(
    isa: Isa,
    task: &Task<'_>,
    queries: &Head,
    keys: &Head,
    values: &Head,
    shape: &Shape,
    log_sums: &mut [f32],
) -> Vec<f32> {
    let mut output = vec![0.0; task.queries() * shape.padded()];
    let mut probabilities = vec![0.0; BLOCK * (task.keys().next_multiple_of(PANEL) + PANEL)];
    for first in (0..task.queries()).step_by(BLOCK) {
        let block = Block::new(first, task, shape);
        scores(isa, &block, &queries.rows, keys, shape, &mut probabilities);
        for row in 0..block.rows {
            let range = visible(&block, row, shape);
            let line = &mut probabilities[row * block.keys..][..block.keys];
            line[..range.start].fill(0.0);
            line[range.end..].fill(0.0);
            let seen = &mut line[range];
            vector::scale(isa, seen, shape.scale);
            if let Some(cap) = shape.soft_cap {
                vector::soft_cap(isa, seen, cap);
            }
            let most = vector::maximum(isa, seen);
            let sum = vector::exp_and_sum(isa, seen, most);
            vector::scale(isa, seen, 1.0 / sum);
            log_sums[first + row] = most + sum.ln();
        }
        let depth = block.keys.min(task.keys() - block.first_key);
        let a = Left { values: &probabilities, start: 0, row_stride: block.keys, depth_stride: 1 };
        let (b, b_first) = (&values.rows, block.first_key);
        add_product(isa, block.rows, depth, a, b, b_first, &mut output, first, shape);
    }
    output
}

/// Queries, keys and values of a packed batch: `[tokens, heads · head_dim]` and twice
/// `[tokens, kv_heads · head_dim]`, row-major.
#[derive(Clone, Copy)]
pub struct Inputs<'a> {
    /// Queries.
    pub queries: &'a [f32],
    /// Keys.
    pub keys: &'a [f32],
    /// Values.
    pub values: &'a [f32],
}

/// One query head of one segment.
struct Task<'a> {
    segment: &'a Segment,
    head: usize,
}

impl Task<'_> {
    /// Number of queries.
    fn queries(&self) -> usize {
        self.segment.rows.len()
    }

    /// Number of keys; the queries are the last of them.
    fn keys(&self) -> usize {
        self.segment.keys()
    }
}

/// Every task of a batch.
fn tasks<'a>(segments: &'a [Segment], shape: &Shape) -> Vec<Task<'a>> {
    let mut tasks = Vec::with_capacity(segments.len() * shape.heads);
    for segment in segments {
        for head in 0..shape.heads {
            tasks.push(Task { segment, head });
        }
    }
    tasks
}

/// The copies of a task's queries, keys and values.
fn copies(task: &Task<'_>, inputs: &Inputs<'_>, shape: &Shape) -> (Head, Head, Head) {
    let kv_head = task.head / (shape.heads / shape.kv_heads);
    let kv_stride = shape.kv_heads * shape.head_dim;
    let seen = || task.segment.before.iter().cloned().chain([task.segment.rows.clone()]);
    let of_seen =
        |values| Head::rows_of(values, seen(), kv_stride, kv_head * shape.head_dim, shape);
    let keys = of_seen(inputs.keys).with_panels(task.keys(), shape);
    (queries_of(inputs.queries, task, shape), keys, of_seen(inputs.values))
}

/// The copy of a task's rows of a matrix in the queries' layout.
fn queries_of(values: &[f32], task: &Task<'_>, shape: &Shape) -> Head {
    let own = std::iter::once(task.segment.rows.clone());
    let stride = shape.heads * shape.head_dim;
    Head::rows_of(values, own, stride, task.head * shape.head_dim, shape)
}

/// Writes (or adds) padded rows into their places, the rows in `runs`, of `[tokens, width]`.
fn place(
    rows: &[f32],
    runs: impl Iterator<Item = Range<usize>>,
    offset: usize,
    width: usize,
    add: bool,
    shape: &Shape,
    into: &mut [f32],
) {
    for (row, from) in runs.flatten().zip(rows.chunks_exact(shape.padded())) {
        let into = &mut into[row * width + offset..][..shape.head_dim];
        for (into, from) in into.iter_mut().zip(from) {
            *into = if add { *into + from } else { *from };
        }
    }
}

/// Attention of a packed batch. `output` is `[tokens, heads · head_dim]`; `log_sums`, as many
/// floats as tokens times heads, gets one for each row of each task, for the backward pass.
pub fn forward(
    isa: Isa,
    inputs: &Inputs<'_>,
    segments: &[Segment],
    shape: &Shape,
    output: &mut [f32],
    log_sums: &mut [f32],
) {
    let tasks = tasks(segments, shape);
    let made: Vec<(Vec<f32>, Vec<f32>)> = tasks
        .par_iter()
        .map(|task| {
            let (queries, keys, values) = copies(task, inputs, shape);
            let mut sums = vec![0.0; task.queries()];
            let rows = forward_head(isa, task, &queries, &keys, &values, shape, &mut sums);
            (rows, sums)
        })
        .collect();
    let mut first_sum = 0;
    for (task, (rows, sums)) in tasks.iter().zip(&made) {
        let width = shape.heads * shape.head_dim;
        let own = std::iter::once(task.segment.rows.clone());
        place(rows, own, task.head * shape.head_dim, width, false, shape, output);
        log_sums[first_sum..][..sums.len()].copy_from_slice(sums);
        first_sum += sums.len();
    }
}

/// Attention of new tokens, the last of those whose `keys` and `values` are given: for decoding,
/// where there are few queries and no backward pass.
pub fn continue_forward(
    isa: Isa,
    queries: &[f32],
    keys: &[f32],
    values: &[f32],
    shape: &Shape,
    output: &mut [f32],
) {
    let kv_width = shape.kv_heads * shape.head_dim;
    let query_width = shape.heads * shape.head_dim;
    let before = keys.len() / kv_width - queries.len() / query_width;
    let group = shape.heads / shape.kv_heads;
    let heads = output.par_chunks_exact_mut(shape.head_dim);
    heads.zip(queries.par_chunks_exact(shape.head_dim)).enumerate().for_each(
        |(index, (output, query))| {
            let (row, head) = (before + index / shape.heads, index % shape.heads);
            let offset = head / group * shape.head_dim;
            let first = shape.first_key(row);
            let at = |key: usize| (first + key) * kv_width + offset;
            let mut weights: Vec<f32> = (0..=row - first)
                .map(|key| vector::dot(isa, query, &keys[at(key)..][..shape.head_dim]))
                .collect();
            vector::scale(isa, &mut weights, shape.scale);
            if let Some(cap) = shape.soft_cap {
                vector::soft_cap(isa, &mut weights, cap);
            }
            let most = vector::maximum(isa, &weights);
            let sum = vector::exp_and_sum(isa, &mut weights, most);
            output.fill(0.0);
            for (key, weight) in weights.iter().enumerate() {
                let value = &values[at(key)..][..shape.head_dim];
                vector::add_scaled(isa, output, value, weight / sum);
            }
        },
    );
}

/// Gradients of queries, keys and values, in the layouts of [`Inputs`]; all are overwritten.
pub struct Gradients<'a> {
    /// Of the queries.
    pub queries: &'a mut [f32],
    /// Of the keys.
    pub keys: &'a mut [f32],
    /// Of the values.
    pub values: &'a mut [f32],
}

/// Backward of [`forward`]: `output` and `log_sums` are what it made, `gradient` is the output's.
#[expect(clippy::too_many_arguments, reason = "what forward read, made, and its gradients")]
pub fn backward(
    isa: Isa,
    inputs: &Inputs<'_>,
    segments: &[Segment],
    shape: &Shape,
    output: &[f32],
    log_sums: &[f32],
    gradient: &[f32],
    gradients: Gradients<'_>,
) {
    let tasks = tasks(segments, shape);
    let mut first_sums = Vec::with_capacity(tasks.len());
    let mut first_sum = 0;
    for task in &tasks {
        first_sums.push(first_sum);
        first_sum += task.queries();
    }
    let made: Vec<[Vec<f32>; 3]> = tasks
        .par_iter()
        .zip(&first_sums)
        .map(|(task, first_sum)| {
            let sums = &log_sums[*first_sum..][..task.queries()];
            backward_head(isa, task, inputs, shape, output, sums, gradient)
        })
        .collect();
    gradients.keys.fill(0.0);
    gradients.values.fill(0.0);
    let query_width = shape.heads * shape.head_dim;
    let kv_width = shape.kv_heads * shape.head_dim;
    for (task, [queries, keys, values]) in tasks.iter().zip(&made) {
        let kv_offset = task.head / (shape.heads / shape.kv_heads) * shape.head_dim;
        let query_offset = task.head * shape.head_dim;
        let own = std::iter::once(task.segment.rows.clone());
        place(queries, own, query_offset, query_width, false, shape, gradients.queries);
        let seen = || task.segment.seen();
        place(keys, seen(), kv_offset, kv_width, true, shape, gradients.keys);
        place(values, seen(), kv_offset, kv_width, true, shape, gradients.values);
    }
}

/// Gradients of one head's queries, keys and values, in padded rows.
fn backward_head(
    isa: Isa,
    task: &Task<'_>,
    inputs: &Inputs<'_>,
    shape: &Shape,
    output: &[f32],
    log_sums: &[f32],
    gradient: &[f32],
) -> [Vec<f32>; 3] {
    let (query_count, key_count) = (task.queries(), task.keys());
    let (queries, keys, values) = copies(task, inputs, shape);
    let values = values.with_panels(key_count, shape);
    let output = queries_of(output, task, shape);
    let gradient = queries_of(gradient, task, shape);

    let padded = shape.padded();
    let mut made = [query_count, key_count, key_count].map(|rows| vec![0.0; rows * padded]);
    let [query_gradient, key_gradient, value_gradient] = &mut made;
    let room = BLOCK * (key_count.next_multiple_of(PANEL) + PANEL);
    let mut probabilities = vec![0.0; room];
    let mut score_gradients = vec![0.0; room];
    for first in (0..query_count).step_by(BLOCK) {
        let block = Block::new(first, task, shape);
        scores(isa, &block, &queries.rows, &keys, shape, &mut probabilities);
        scores(isa, &block, &gradient.rows, &values, shape, &mut score_gradients);
        for row in 0..block.rows {
            let range = visible(&block, row, shape);
            let query = first + row;
            let line = &mut probabilities[row * block.keys..][..block.keys];
            let slopes = &mut score_gradients[row * block.keys..][..block.keys];
            for line in [&mut *line, &mut *slopes] {
                line[..range.start].fill(0.0);
                line[range.end..].fill(0.0);
            }
            let line = &mut line[range.clone()];
            vector::scale(isa, line, shape.scale);
            // Rows of output · gradient: the mean of the score gradients under the probabilities.
            let mean = vector::dot(
                isa,
                &output.rows[query * padded..][..padded],
                &gradient.rows[query * padded..][..padded],
            );
            row_backward(isa, line, &mut slopes[range], log_sums[query], mean, shape);
        }
        let depth = block.keys.min(key_count - block.first_key);
        let first_key = block.first_key;
        let by_row = |values| Left { values, start: 0, row_stride: block.keys, depth_stride: 1 };
        let by_key = |values| Left { values, start: 0, row_stride: 1, depth_stride: block.keys };
        let rows = block.rows;
        let slopes = by_row(&score_gradients[..]);
        add_product(isa, rows, depth, slopes, &keys.rows, first_key, query_gradient, first, shape);
        let slopes = by_key(&score_gradients[..]);
        add_product(isa, depth, rows, slopes, &queries.rows, first, key_gradient, first_key, shape);
        let weights = by_key(&probabilities[..]);
        add_product(
            isa,
            depth,
            rows,
            weights,
            &gradient.rows,
            first,
            value_gradient,
            first_key,
            shape,
        );
    }
    made
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
