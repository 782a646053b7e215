//! The products that attention's forward and backward passes share.

use std::ops::Range;

use super::layout::{BatchLayout, KeySlice, QueryBlock, VisibleKeys};
use super::packed_heads::{KPairs, TransposedPanels};
use crate::train::backend::AttentionShape;
use crate::train::backend::cpu::gemm::matmul::{MAX_TERMS, multiply_rows};
use crate::train::backend::cpu::gemm::packed_element::packed_len;
use crate::train::backend::cpu::gemm::packed_matrix::PANEL;
use crate::train::backend::cpu::gemm::tile::{
    AccumulateMode, GemmTerm, LANES, LeftOperand, MAX_VECTORS, OutputRegion, SharedOutput,
};

/// Query rows of one block: enough depth for the products of the backward pass.
pub(super) const QUERY_BLOCK: usize = 48;

/// Queries, keys and values of a packed batch: `[tokens, heads · head_dim]` and twice
/// `[tokens, kv_heads · head_dim]`, row-major.
#[derive(Clone, Copy)]
pub struct AttentionInputs<'a> {
    /// Queries.
    pub queries: &'a [f32],
    /// Keys.
    pub keys: &'a [f32],
    /// Values.
    pub values: &'a [f32],
}

/// A head's width in parts that are at most as wide as a tile.
pub(super) fn head_columns(shape: &AttentionShape) -> impl Iterator<Item = Range<usize>> + use<> {
    const MAX_WIDTH: usize = MAX_VECTORS * LANES;
    let head_dim = shape.head_dim;
    (0..head_dim).step_by(MAX_WIDTH).map(move |start| start..(start + MAX_WIDTH).min(head_dim))
}

/// `output[rows, keys] = queries · keysᵀ` for the keys of a slice, the first in the region's first column.
///
/// # Safety
/// Nothing else reads or writes the rows of `region` meanwhile.
#[expect(clippy::too_many_arguments, reason = "the coordinates of a product in three matrices")]
pub(super) unsafe fn scores(
    layout: &BatchLayout,
    rows: usize,
    (left, k_len): (LeftOperand<'_>, usize),
    keys: &TransposedPanels,
    kv_head: usize,
    slice: &KeySlice,
    output: &SharedOutput<'_>,
    region: OutputRegion,
) {
    for (index, first) in (0..slice.keys).step_by(PANEL).enumerate() {
        let terms = [GemmTerm {
            left,
            right: keys.right(kv_head, slice, index),
            k_len,
            right_is_bf16: false,
        }];
        let columns = (slice.keys - first).min(PANEL);
        let region = OutputRegion { start: region.start + first, columns, ..region };
        // SAFETY: the caller's promise.
        unsafe {
            multiply_rows(layout.isa, rows, &terms, AccumulateMode::Overwrite, output, region)
        };
    }
}

/// A block's packed rows, whose k dimension is the keys, times the rows of `right` for these keys.
///
/// # Safety
/// Nothing else reads or writes the rows of `region` meanwhile.
#[expect(clippy::too_many_arguments, reason = "the coordinates of a product in three matrices")]
pub(super) unsafe fn multiply_over_keys(
    layout: &BatchLayout,
    seen: &VisibleKeys,
    block: &QueryBlock,
    left: &[u32],
    right: &KPairs,
    kv_head: usize,
    output: &SharedOutput<'_>,
    region: OutputRegion,
) {
    let isa = layout.isa;
    let width = packed_len(isa, block.columns);
    for part in head_columns(&layout.shape) {
        let region =
            OutputRegion { start: region.start + part.start, columns: part.len(), ..region };
        let mut terms = [GemmTerm::default(); MAX_TERMS];
        let mut count = 0;
        let mut mode = AccumulateMode::Overwrite;
        let mut slices = layout.slices(seen, block).peekable();
        while let Some(slice) = slices.next() {
            terms[count] = GemmTerm {
                left: LeftOperand {
                    elements: left,
                    start: packed_len(isa, slice.column),
                    row_stride: width,
                    k_stride: 1,
                },
                right: right.keys(kv_head, &slice, part.start),
                k_len: packed_len(isa, slice.keys),
                right_is_bf16: false,
            };
            count += 1;
            if count == MAX_TERMS || slices.peek().is_none() {
                // SAFETY: the caller's promise.
                unsafe { multiply_rows(isa, block.rows, &terms[..count], mode, output, region) };
                (count, mode) = (0, AccumulateMode::AddScaled(1.0));
            }
        }
    }
}
