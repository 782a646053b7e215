//! Matrix products over whole matrices, on all threads.
//!
//! Work is cut into blocks of the result that no two threads share; each element's sum runs in the
//! order of its depth, so the number of threads never changes a bit.

use rayon::prelude::*;

use super::isa::Isa;
use super::tile::{Left, PANEL, Right, TILE_ROWS, Tile, UNIT, multiply, multiply_bf16};

/// Most rows of the result in one task: their A, in bfloat16 or float, stays in the second-level
/// cache beside one panel of B.
const MOST_ROWS: usize = 96;

/// A frozen matrix, packed once for products `x · Wᵀ`: panels of [`PANEL`] outputs, the depth
/// running slowest within a panel, zeros behind the last output.
pub struct Packed {
    /// Columns of the product.
    pub outputs: usize,
    /// Depth of the product.
    pub inputs: usize,
    panels: Panels,
}

enum Panels {
    /// Two consecutive depths in one word, the earlier in the low half.
    Bf16(Vec<u32>),
    F32(Vec<f32>),
}

/// The left side of a product with a [`Packed`] matrix, in the precision that it is packed in.
pub enum Rows<'a> {
    /// As [`to_pairs`] makes them.
    Bf16(&'a [u32]),
    /// Row-major.
    F32(&'a [f32]),
}

impl Packed {
    /// Packs a matrix of `outputs × inputs` whose element (output, input) is
    /// `values[output * output_stride + input * input_stride]`: both W and Wᵀ pack from the same
    /// values.
    pub fn new(
        isa: Isa,
        values: &[f32],
        outputs: usize,
        inputs: usize,
        output_stride: usize,
        input_stride: usize,
    ) -> Self {
        let panel_count = outputs.div_ceil(PANEL);
        let element = |output: usize, input: usize| {
            if output < outputs && input < inputs {
                values[output * output_stride + input * input_stride]
            } else {
                0.0
            }
        };
        let panels = if isa == Isa::Bf16 {
            let pairs = inputs.div_ceil(2);
            let mut panels = vec![0u32; panel_count * pairs * PANEL];
            panels.par_chunks_mut(pairs * PANEL).enumerate().for_each(|(panel, words)| {
                for (index, word) in words.iter_mut().enumerate() {
                    let (pair, column) = (index / PANEL, panel * PANEL + index % PANEL);
                    *word = pack_pair(element(column, 2 * pair), element(column, 2 * pair + 1));
                }
            });
            Panels::Bf16(panels)
        } else {
            let mut panels = vec![0f32; panel_count * inputs * PANEL];
            panels.par_chunks_mut(inputs * PANEL).enumerate().for_each(|(panel, floats)| {
                for (index, float) in floats.iter_mut().enumerate() {
                    *float = element(panel * PANEL + index % PANEL, index / PANEL);
                }
            });
            Panels::F32(panels)
        };
        Self { outputs, inputs, panels }
    }

    /// Bytes of a packed matrix.
    pub fn bytes(isa: Isa, outputs: usize, inputs: usize) -> u64 {
        let depths = if isa == Isa::Bf16 { inputs.div_ceil(2) } else { inputs };
        (outputs.div_ceil(PANEL) * PANEL * depths * size_of::<u32>()) as u64
    }

    /// Whether products with it take [`Rows::Bf16`].
    pub fn is_bf16(&self) -> bool {
        matches!(self.panels, Panels::Bf16(_))
    }
}

impl Packed {
    /// The matrix's own row `output`, as it is packed.
    pub fn read_row(&self, output: usize, into: &mut [f32]) {
        let column = output % PANEL;
        match &self.panels {
            Panels::Bf16(panels) => {
                let pairs = self.inputs.div_ceil(2);
                let panel = &panels[output / PANEL * pairs * PANEL..][..pairs * PANEL];
                for (index, value) in into.iter_mut().enumerate() {
                    let word = panel[index / 2 * PANEL + column];
                    let bits = if index % 2 == 0 { word << 16 } else { word & 0xffff_0000 };
                    *value = f32::from_bits(bits);
                }
            }
            Panels::F32(panels) => {
                let panel = &panels[output / PANEL * self.inputs * PANEL..][..self.inputs * PANEL];
                for (index, value) in into.iter_mut().enumerate() {
                    *value = panel[index * PANEL + column];
                }
            }
        }
    }
}

/// bfloat16 bits of two floats, rounded to nearest even, the first in the low half.
fn pack_pair(low: f32, high: f32) -> u32 {
    let low = half::bf16::from_f32(low).to_bits();
    let high = half::bf16::from_f32(high).to_bits();
    u32::from(low) | (u32::from(high) << 16)
}

/// Rows of `inputs` floats as rows of ⌈inputs / 2⌉ bfloat16 pairs.
pub fn to_pairs(values: &[f32], inputs: usize, pairs: &mut Vec<u32>) {
    let width = inputs.div_ceil(2);
    let rows = values.len() / inputs.max(1);
    pairs.resize(rows * width, 0);
    let rows_of_pairs = pairs.par_chunks_mut(width.max(1)).with_min_len(16);
    rows_of_pairs.zip(values.par_chunks(inputs.max(1))).for_each(|(words, floats)| {
        for (word, pair) in words.iter_mut().zip(floats.chunks(2)) {
            *word = pack_pair(pair[0], pair.get(1).copied().unwrap_or(0.0));
        }
    });
}

/// What a product does with what stands in the result.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Store {
    /// Replaces it.
    Overwrite,
    /// Adds `factor` times the product to it.
    Add(f32),
}

/// `result[rows, outputs] (+)= x[rows, inputs] · Wᵀ`.
pub fn times_packed(isa: Isa, x: Rows<'_>, packed: &Packed, store: Store, result: &mut [f32]) {
    let outputs = packed.outputs;
    let rows = result.len() / outputs.max(1);
    if rows == 1 {
        // One token: the weights stream through once, so threads share the outputs.
        let per_task = (outputs.div_ceil(PANEL)).div_ceil(4 * rayon::current_num_threads()).max(1);
        result.par_chunks_mut(per_task * PANEL).enumerate().for_each(|(task, part)| {
            let first_panel = task * per_task;
            block(isa, &x, 0, 1, packed, first_panel, store, part, part.len());
        });
        return;
    }
    let block_rows = rows_per_task(rows);
    result.par_chunks_mut(block_rows * outputs).enumerate().for_each(|(task, part)| {
        let height = part.len() / outputs;
        block(isa, &x, task * block_rows, height, packed, 0, store, part, outputs);
    });
}

/// Rows of one task: few enough that every thread has several, in whole tiles.
fn rows_per_task(rows: usize) -> usize {
    let fair = rows.div_ceil(4 * rayon::current_num_threads());
    fair.next_multiple_of(TILE_ROWS).min(MOST_ROWS)
}

/// One block of the result: `height` rows from `first_row`, `width` columns from `first_panel`.
#[expect(clippy::too_many_arguments, reason = "the coordinates of a block in three matrices")]
fn block(
    isa: Isa,
    x: &Rows<'_>,
    first_row: usize,
    height: usize,
    packed: &Packed,
    first_panel: usize,
    store: Store,
    part: &mut [f32],
    width: usize,
) {
    let mut tile: Tile = [0.0; TILE_ROWS * PANEL];
    for panel in 0..width.div_ceil(PANEL) {
        let columns = (width - panel * PANEL).min(PANEL);
        for row in (0..height).step_by(TILE_ROWS) {
            let rows = (height - row).min(TILE_ROWS);
            match (&packed.panels, x) {
                (Panels::Bf16(panels), Rows::Bf16(x)) => {
                    let pairs = packed.inputs.div_ceil(2);
                    let a = &x[(first_row + row) * pairs..];
                    let panel = &panels[(first_panel + panel) * pairs * PANEL..];
                    multiply_bf16(rows, pairs, a, panel, &mut tile);
                }
                (Panels::F32(panels), Rows::F32(x)) => {
                    let inputs = packed.inputs;
                    let a = Left {
                        values: x,
                        start: (first_row + row) * inputs,
                        row_stride: inputs,
                        depth_stride: 1,
                    };
                    let start = (first_panel + panel) * inputs * PANEL;
                    let b = Right { values: panels, start, stride: PANEL };
                    multiply(isa, rows, PANEL / UNIT, inputs, a, b, &mut tile);
                }
                _ => unreachable!("the left side is made in the precision of the packed matrix"),
            }
            keep(&tile, rows, columns, store, part, row * width + panel * PANEL, width);
        }
    }
}

/// Moves a tile into the result.
fn keep(
    tile: &Tile,
    rows: usize,
    columns: usize,
    store: Store,
    result: &mut [f32],
    start: usize,
    width: usize,
) {
    for row in 0..rows {
        let from = &tile[row * PANEL..][..columns];
        let into = &mut result[start + row * width..][..columns];
        match store {
            Store::Overwrite => into.copy_from_slice(from),
            Store::Add(factor) => {
                for (into, from) in into.iter_mut().zip(from) {
                    *into += factor * from;
                }
            }
        }
    }
}

/// Rows of floats whose length is whole units, as [`multiply`] wants its right side.
pub struct Padded<'a> {
    values: std::borrow::Cow<'a, [f32]>,
    stride: usize,
}

impl<'a> Padded<'a> {
    /// `values` as rows of `columns`; copied only where the rows are not whole units.
    pub fn rows(values: &'a [f32], columns: usize) -> Self {
        if columns.is_multiple_of(UNIT) {
            return Self { values: values.into(), stride: columns };
        }
        let stride = columns.next_multiple_of(UNIT);
        let mut copy = vec![0.0; values.len() / columns * stride];
        for (into, from) in copy.chunks_exact_mut(stride).zip(values.chunks_exact(columns)) {
            into[..columns].copy_from_slice(from);
        }
        Self { values: copy.into(), stride }
    }

    /// The transpose of `values`, which has rows of `columns`.
    pub fn transposed(values: &[f32], columns: usize) -> Self {
        let rows = values.len() / columns;
        let stride = rows.next_multiple_of(UNIT);
        let mut copy = vec![0.0; columns * stride];
        for (row, from) in values.chunks_exact(columns).enumerate() {
            for (column, value) in from.iter().enumerate() {
                copy[column * stride + row] = *value;
            }
        }
        Self { values: copy.into(), stride }
    }
}

/// `result[rows, columns] (+)= Σ_depth a(row, depth) · b[depth]`, in 32-bit floats.
pub fn product(
    isa: Isa,
    depth: usize,
    a: Left<'_>,
    b: &Padded<'_>,
    columns: usize,
    store: Store,
    result: &mut [f32],
) {
    if result.is_empty() {
        return;
    }
    let block_rows = rows_per_task(result.len() / columns);
    result.par_chunks_mut(block_rows * columns).enumerate().for_each(|(task, part)| {
        let mut tile: Tile = [0.0; TILE_ROWS * PANEL];
        let height = part.len() / columns;
        for column in (0..columns).step_by(PANEL) {
            let width = (columns - column).min(PANEL);
            let right = Right { values: &b.values, start: column, stride: b.stride };
            for row in (0..height).step_by(TILE_ROWS) {
                let rows = (height - row).min(TILE_ROWS);
                let start = a.start + (task * block_rows + row) * a.row_stride;
                let left = Left { start, ..a };
                multiply(isa, rows, width.div_ceil(UNIT), depth, left, right, &mut tile);
                keep(&tile, rows, width, store, part, row * columns + column, columns);
            }
        }
    });
}
