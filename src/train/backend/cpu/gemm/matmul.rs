//! Matrix products over whole panels and any number of rows: tile after tile.

use std::ops::Range;

use rayon::prelude::*;

use super::packed_matrix::{PANEL, PackedMatrix};
use super::tile::{
    AccumulateMode, GemmTerm, LANES, LeftOperand, OutputRegion, RightOperand, SharedOutput,
    multiply_tile, tile_rows,
};
use crate::train::backend::cpu::isa::Isa;

/// Block size along k, in packed elements: a panel's part stays in the second-level cache while all rows
/// are multiplied with it.
const K_BLOCK: usize = 1024;

/// Most terms that one sweep over the rows adds up.
pub const MAX_TERMS: usize = 8;

/// The operands of one product: rows, and the packed matrix that they are multiplied with.
#[derive(Clone, Copy)]
pub struct GemmOperands<'a> {
    /// The rows.
    pub left: LeftOperand<'a>,
    /// The matrix.
    pub right: &'a PackedMatrix,
}

/// `output[rows, panels] (+)= Σ left · rightᵀ` over `products`, whose matrices have panels of the same
/// columns. `region` is that of the whole product: where its first panel begins, the distance between
/// rows, and all of its columns.
///
/// # Safety
/// Nothing else reads or writes these rows of these panels meanwhile.
pub unsafe fn multiply_panels<'a>(
    isa: Isa,
    rows: usize,
    products: impl Iterator<Item = GemmOperands<'a>> + Clone,
    panels: Range<usize>,
    mode: AccumulateMode,
    output: &SharedOutput<'_>,
    region: OutputRegion,
) {
    for panel in panels {
        let mut mode = mode;
        let mut batch = [GemmTerm::default(); MAX_TERMS];
        let (mut count, mut k_in_batch) = (0, 0);
        let mut terms = products.clone().flat_map(|product| terms_of(product, panel)).peekable();
        while let Some((term, width)) = terms.next() {
            batch[count] = term;
            count += 1;
            k_in_batch += if term.right_is_bf16 { 2 * term.k_len } else { term.k_len };
            if terms.peek().is_some() && count < MAX_TERMS && k_in_batch < K_BLOCK {
                continue;
            }
            let region = OutputRegion {
                start: region.start + panel * width,
                columns: width.min(region.columns - panel * width),
                ..region
            };
            // SAFETY: the caller's promise, for this panel.
            unsafe { multiply_rows(isa, rows, &batch[..count], mode, output, region) };
            // The next batch continues these sums, or is added with the same α.
            if mode == AccumulateMode::Overwrite {
                mode = AccumulateMode::StartFromOutput;
            }
            (count, k_in_batch) = (0, 0);
        }
    }
}

/// One panel's part of a product, in terms of at most [`K_BLOCK`], with the panel's columns.
fn terms_of(
    product: GemmOperands<'_>,
    panel: usize,
) -> impl Iterator<Item = (GemmTerm<'_>, usize)> {
    let GemmOperands { left, right } = product;
    let (width, k_len, right_is_bf16) = (right.width(), right.k_len(), right.is_stored_in_bf16());
    // A block is as many values whatever their storage, so that bf16 and f32 storage give the same sums.
    let left_per_right = if right_is_bf16 { 2 } else { 1 };
    let k_block = K_BLOCK / left_per_right;
    (0..k_len).step_by(k_block).map(move |k| {
        let left = LeftOperand { start: left.start + k * left_per_right * left.k_stride, ..left };
        let start = (panel * k_len + k) * width;
        let right = RightOperand { elements: right.elements(), start, stride: width };
        (GemmTerm { left, right, k_len: (k_len - k).min(k_block), right_is_bf16 }, width)
    })
}

/// `output (+)= Σ terms` for any number of rows, tile after tile.
///
/// # Safety
/// Nothing else reads or writes the rows of `region` meanwhile.
pub unsafe fn multiply_rows(
    isa: Isa,
    rows: usize,
    terms: &[GemmTerm<'_>],
    mode: AccumulateMode,
    output: &SharedOutput<'_>,
    region: OutputRegion,
) {
    let height = tile_rows(isa, region.columns.div_ceil(LANES));
    let mut of_tile = [GemmTerm::default(); MAX_TERMS];
    let of_tile = &mut of_tile[..terms.len()];
    for row in (0..rows).step_by(height) {
        for (of_tile, term) in of_tile.iter_mut().zip(terms) {
            *of_tile = GemmTerm { left: term.left.skip_rows(row), ..*term };
        }
        let region = OutputRegion { start: region.start + row * region.stride, ..region };
        // SAFETY: the caller's promise, for these rows.
        unsafe { multiply_tile(isa, (rows - row).min(height), of_tile, mode, output, region) };
    }
}

/// `result[rows, columns] += factor · leftᵀ · right` in f32, for `left` of `[tokens, rows]` and `right` of
/// `[tokens, columns]`: a weight's gradient, summed over tokens.
pub fn add_transposed_product(
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
    let tokens = left.len() / rows;
    let (left, right) = (bytemuck::cast_slice(left), bytemuck::cast_slice(right));
    let output = SharedOutput::new(result);
    (0..columns.div_ceil(PANEL)).into_par_iter().for_each(|panel| {
        let first = panel * PANEL;
        let wide = (columns - first).min(PANEL);
        // Columns that do not fill a vector are summed alone: no zeros follow the rows of the right operand.
        let whole = wide / LANES * LANES;
        if whole > 0 {
            let term = GemmTerm {
                left: LeftOperand { elements: left, start: 0, row_stride: 1, k_stride: rows },
                right: RightOperand { elements: right, start: first, stride: columns },
                k_len: tokens,
                right_is_bf16: false,
            };
            let region = OutputRegion { start: first, stride: columns, columns: whole };
            // SAFETY: each task has columns of its own.
            unsafe {
                let mode = AccumulateMode::AddScaled(factor);
                multiply_rows(isa.for_f32(), rows, &[term], mode, &output, region);
            }
        }
        for column in first + whole..first + wide {
            for row in 0..rows {
                let mut sum = 0.0f32;
                for token in 0..tokens {
                    let element = f32::from_bits(left[token * rows + row]);
                    sum = element.mul_add(f32::from_bits(right[token * columns + column]), sum);
                }
                // SAFETY: each task has columns of its own.
                unsafe { output.slice_mut(row * columns + column, 1)[0] += factor * sum };
            }
        }
    });
}
