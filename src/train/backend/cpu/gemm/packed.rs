//! Frozen and small matrices packed for products, and products over whole panels of them.

use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;

use super::elements::{across, along, numbers_in_word, read, words};
use super::tile::{Left, Place, Right, Store, Target, Term, UNIT, multiply, tile_rows};
use crate::train::backend::cpu::buffer_pool::{Matrix, Pool};
use crate::train::backend::cpu::isa::Isa;

/// Most columns of a panel: three units, which with eight rows make 24 sums of 32 registers.
pub const PANEL: usize = 3 * UNIT;

/// Words that one round over a panel runs along: a panel's part stays in the second-level cache while
/// the rows pass.
const DEPTH: usize = 1024;

/// Most terms of one round.
pub const TERMS: usize = 8;

/// Words of a panel that are worth a task of their own.
const PANEL_TASK: usize = 64 * 1024;

/// A matrix of `outputs × inputs`, packed for products `x · Wᵀ`: panels of outputs, the depth running
/// slowest within a panel, zeros behind the last output.
pub struct Packed {
    /// Columns of the product.
    pub outputs: usize,
    /// Numbers along the depth of the product.
    pub inputs: usize,
    isa: Isa,
    /// Whether the words are pairs of bfloat16 numbers, though the kernels multiply floats.
    halves: bool,
    /// Columns of a panel.
    width: usize,
    words: Matrix,
}

impl Packed {
    /// Packs `values` of `[outputs, inputs]`, to stay.
    pub fn of_rows(
        isa: Isa,
        pool: &Arc<Pool>,
        values: &[f32],
        outputs: usize,
        inputs: usize,
    ) -> Self {
        let mut packed = Self::blank(isa, outputs, inputs, |count| pool.take_exactly(1, count));
        packed.fill_from_rows(values);
        packed
    }

    /// Packs the transpose of `values`, which is `[inputs, outputs]`, to stay.
    pub fn of_columns(
        isa: Isa,
        pool: &Arc<Pool>,
        values: &[f32],
        outputs: usize,
        inputs: usize,
    ) -> Self {
        let mut packed = Self::blank(isa, outputs, inputs, |count| pool.take_exactly(1, count));
        packed.fill_from_columns(values);
        packed
    }

    /// As [`Packed::of_rows`] of a matrix for one pass: its memory goes round.
    pub fn rows_for_now(isa: Isa, pool: &Arc<Pool>, matrix: &Matrix) -> Self {
        let (outputs, inputs) = (matrix.rows(), matrix.columns());
        let mut packed = Self::blank(isa, outputs, inputs, |count| pool.take(1, count));
        packed.fill_from_rows(matrix.values());
        packed
    }

    /// As [`Packed::of_columns`] of a matrix for one pass: its memory goes round.
    pub fn columns_for_now(isa: Isa, pool: &Arc<Pool>, matrix: &Matrix) -> Self {
        let (inputs, outputs) = (matrix.rows(), matrix.columns());
        let mut packed = Self::blank(isa, outputs, inputs, |count| pool.take(1, count));
        packed.fill_from_columns(matrix.values());
        packed
    }

    /// One whose words, as many as `take` is asked for, are yet to be filled.
    fn blank(isa: Isa, outputs: usize, inputs: usize, take: impl FnOnce(usize) -> Matrix) -> Self {
        let (width, count) = size(isa, outputs, inputs);
        Self { outputs, inputs, isa, halves: false, width, words: take(count) }
    }

    /// As [`Packed::of_rows`] for kernels that multiply floats, in half the memory: of values that
    /// bfloat16 holds exactly, so that no product changes. `None` where it does not hold one of them.
    pub fn of_exact_halves(
        isa: Isa,
        pool: &Arc<Pool>,
        values: &[f32],
        outputs: usize,
        inputs: usize,
    ) -> Option<Self> {
        let is_exact = |values: &[f32]| values.iter().all(|value| value.to_bits() & 0xffff == 0);
        if isa == Isa::Bf16
            || !inputs.is_multiple_of(2)
            || !values.par_chunks(PANEL_TASK).all(is_exact)
        {
            return None;
        }
        let take = |count: usize| pool.take_exactly(1, count / 2);
        let mut packed = Self { halves: true, ..Self::blank(isa, outputs, inputs, take) };
        let width = packed.width;
        packed.each_panel(|panel, words| {
            for column in 0..width.min(outputs - panel * width) {
                let row = &values[(panel * width + column) * inputs..][..inputs];
                for (pair, into) in
                    row.as_chunks::<2>().0.iter().zip(words[column..].iter_mut().step_by(width))
                {
                    *into = (pair[0].to_bits() >> 16) | pair[1].to_bits();
                }
            }
        });
        Some(packed)
    }

    fn fill_from_rows(&mut self, values: &[f32]) {
        /// Words that are made at once.
        const PART: usize = 256;
        let Self { outputs, inputs, isa, width, .. } = *self;
        self.each_panel(|panel, words| {
            if (panel + 1) * width > outputs {
                words.fill(0);
            }
            let mut part = [0; PART];
            for column in 0..width.min(outputs - panel * width) {
                let row = &values[(panel * width + column) * inputs..][..inputs];
                let parts = row.chunks(PART * numbers_in_word(isa));
                for (row, into) in parts.zip(words.chunks_mut(PART * width)) {
                    let count = row.len().div_ceil(numbers_in_word(isa));
                    along(isa, row, &mut part[..count]);
                    for (depth, word) in part[..count].iter().enumerate() {
                        into[depth * width + column] = *word;
                    }
                }
            }
        });
    }

    fn fill_from_columns(&mut self, values: &[f32]) {
        let Self { outputs, inputs, isa, width, .. } = *self;
        let per_word = numbers_in_word(isa);
        self.each_panel(|panel, words| {
            let first = panel * width;
            let columns = width.min(outputs - first);
            for (depth, into) in words.chunks_exact_mut(width).enumerate() {
                let row = |number: usize| &values[number * outputs + first..][..columns];
                let second = (per_word == 2 && 2 * depth + 1 < inputs).then(|| row(2 * depth + 1));
                across(isa, row(depth * per_word), second, into);
                into[columns..].fill(0);
            }
        });
    }

    /// Calls `fill` with each panel's index and words.
    fn each_panel(&mut self, fill: impl Fn(usize, &mut [u32]) + Sync) {
        let count = self.width * self.depth();
        let panels = self.words.words_mut().par_chunks_exact_mut(count.max(1));
        let at_once = (PANEL_TASK / count.max(1)).max(1);
        panels.enumerate().with_min_len(at_once).for_each(|(panel, words)| fill(panel, words));
    }

    /// Bytes of a packed matrix.
    pub fn bytes(isa: Isa, outputs: usize, inputs: usize) -> u64 {
        (size(isa, outputs, inputs).1 * size_of::<u32>()) as u64
    }

    /// Number of panels.
    pub fn panels(&self) -> usize {
        self.outputs.div_ceil(self.width)
    }

    /// Words along the depth.
    pub fn depth(&self) -> usize {
        words(self.layout(), self.inputs)
    }

    /// Bytes that its words take.
    pub fn held(&self) -> u64 {
        size_of_val(self.words.words()) as u64
    }

    /// The level whose words these are.
    fn layout(&self) -> Isa {
        if self.halves { Isa::Bf16 } else { self.isa }
    }

    /// The matrix's own row `output`, as it is packed.
    pub fn read_row(&self, output: usize, into: &mut [f32]) {
        let start = output / self.width * self.depth() * self.width + output % self.width;
        read(self.layout(), self.words.words(), start, self.width, into);
    }
}

/// Columns of a panel, and words of all panels.
fn size(isa: Isa, outputs: usize, inputs: usize) -> (usize, usize) {
    // With AVX2 a tile runs down one unit: side by side, its rows lie in cache lines that follow each
    // other, and stay in the first-level cache's reach.
    let most = if isa == Isa::Avx2 { UNIT } else { PANEL };
    let width = outputs.next_multiple_of(UNIT).min(most);
    (width, outputs.div_ceil(width.max(1)) * width * words(isa, inputs))
}

/// Rows of words beside the matrix that they are multiplied with.
#[derive(Clone, Copy)]
pub struct Factor<'a> {
    /// The rows.
    pub left: Left<'a>,
    /// The matrix.
    pub packed: &'a Packed,
}

/// `target[rows, panels] (+)= Σ left · packedᵀ` over `factors`, whose matrices have panels of the same
/// columns. `place` says where the row begins that the first panel of all would begin, and the
/// distance between rows; its `columns` are those of the whole product.
///
/// # Safety
/// Nothing else reads or writes these rows of these panels meanwhile.
pub unsafe fn add_up<'a>(
    isa: Isa,
    rows: usize,
    factors: impl Iterator<Item = Factor<'a>> + Clone,
    panels: Range<usize>,
    store: Store,
    target: &Target<'_>,
    place: Place,
) {
    for panel in panels {
        let mut store = store;
        let mut round = [Term::default(); TERMS];
        let (mut count, mut in_round) = (0, 0);
        let mut terms = factors.clone().flat_map(|factor| terms_of(factor, panel)).peekable();
        while let Some((term, width)) = terms.next() {
            round[count] = term;
            count += 1;
            in_round += if term.halves { 2 * term.depth } else { term.depth };
            if terms.peek().is_some() && count < TERMS && in_round < DEPTH {
                continue;
            }
            let place = Place {
                start: place.start + panel * width,
                columns: width.min(place.columns - panel * width),
                ..place
            };
            // SAFETY: the caller's promise, for this panel.
            unsafe { pass(isa, rows, &round[..count], store, target, place) };
            // What comes after goes on from there, or adds to it with the factor of the whole.
            if store == Store::Overwrite {
                store = Store::Continue;
            }
            (count, in_round) = (0, 0);
        }
    }
}

/// One panel's part of a factor, in terms of the depth of a round, with the panel's columns.
fn terms_of(factor: Factor<'_>, panel: usize) -> impl Iterator<Item = (Term<'_>, usize)> {
    let Factor { left, packed } = factor;
    let (width, all, halves) = (packed.width, packed.depth(), packed.halves);
    // A round is as many numbers of a row, so that halves add up as floats do.
    let of_left = if halves { 2 } else { 1 };
    let most = DEPTH / of_left;
    (0..all).step_by(most).map(move |from| {
        let left = Left { start: left.start + from * of_left * left.depth_stride, ..left };
        let start = (panel * all + from) * width;
        let right = Right { words: packed.words.words(), start, stride: width };
        (Term { left, right, depth: (all - from).min(most), halves }, width)
    })
}

/// `target (+)= Σ terms` for any number of rows: a tile after the other.
///
/// # Safety
/// Nothing else reads or writes the rows of `place` meanwhile.
pub unsafe fn pass(
    isa: Isa,
    rows: usize,
    terms: &[Term<'_>],
    store: Store,
    target: &Target<'_>,
    place: Place,
) {
    let height = tile_rows(isa, place.columns.div_ceil(UNIT));
    let mut moved = [Term::default(); TERMS];
    let moved = &mut moved[..terms.len()];
    for row in (0..rows).step_by(height) {
        for (moved, term) in moved.iter_mut().zip(terms) {
            *moved = Term { left: term.left.from_row(row), ..*term };
        }
        let place = Place { start: place.start + row * place.stride, ..place };
        // SAFETY: the caller's promise, for these rows.
        unsafe { multiply(isa, (rows - row).min(height), moved, store, target, place) };
    }
}

/// `result[rows, columns] += factor · leftᵀ · right` in 32-bit floats, for `left` of
/// `[depth, rows]` and `right` of `[depth, columns]`: a gradient summed over tokens.
pub fn add_outer(
    isa: Isa,
    left: &[f32],
    rows: usize,
    right: &[f32],
    columns: usize,
    factor: f32,
    result: &mut [f32],
) {
    if rows == 0 || columns == 0 {
        return;
    }
    let depth = left.len() / rows;
    let (left, right) = (bytemuck::cast_slice(left), bytemuck::cast_slice(right));
    let target = Target::new(result);
    (0..columns.div_ceil(PANEL)).into_par_iter().for_each(|panel| {
        let first = panel * PANEL;
        let wide = (columns - first).min(PANEL);
        // What does not fill a unit comes last and alone: the right side has no zeros behind its rows.
        let whole = wide / UNIT * UNIT;
        if whole > 0 {
            let term = Term {
                left: Left { words: left, start: 0, row_stride: 1, depth_stride: rows },
                right: Right { words: right, start: first, stride: columns },
                depth,
                halves: false,
            };
            let place = Place { start: first, stride: columns, columns: whole };
            // SAFETY: each task has columns of its own.
            unsafe {
                pass(isa.for_f32(), rows, &[term], Store::Add(factor), &target, place);
            }
        }
        for column in first + whole..first + wide {
            for row in 0..rows {
                let mut sum = 0.0f32;
                for token in 0..depth {
                    let element = f32::from_bits(left[token * rows + row]);
                    sum = element.mul_add(f32::from_bits(right[token * columns + column]), sum);
                }
                // SAFETY: each task has columns of its own.
                unsafe { target.part(row * columns + column, 1)[0] += factor * sum };
            }
        }
    });
}
