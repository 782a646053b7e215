//! Causal attention over the segments of a packed batch, forward and backward.
//!
//! Heads are turned into words once for all that multiply them ([`layout`]). The work is blocks of
//! query rows of one head; a block's scores against all keys it may see (those of shared prefixes
//! before its segment, then its own) stand in memory at once, a few hundred kilobytes, never the whole
//! matrix. Forward keeps only the log-sum-exp of each row; backward computes the probabilities again
//! from it (Dao et al. 2022, "FlashAttention", without its inner tiling). The gradients of a prefix's
//! keys gather from all that see it.
//!
//! A query's output does not depend on how its text is cut into segments, where these have an even
//! number of rows: keys stand at their positions, and sums run in their order.

pub mod backward;
pub mod cached;
pub mod forward;
pub mod kv_cache;
mod layout;

use std::ops::Range;

use super::gemm::packed_element::packed_len;
use super::gemm::tile::{
    AccumulateMode, GemmTerm, LANES, LeftOperand, MAX_VECTORS, OutputRegion, SharedOutput,
};
use crate::train::backend::AttentionShape;
use crate::train::backend::cpu::gemm::matmul::{MAX_TERMS, multiply_rows};
use crate::train::backend::cpu::gemm::packed_matrix::PANEL;
use layout::{Across, Block, Layout, Panels, Piece, Seen};

/// Query rows of one block: enough depth for the products of the backward pass.
const BLOCK: usize = 48;

impl AttentionShape {
    /// First key that the query at position `row` of its text sees.
    fn first_key(&self, row: usize) -> usize {
        self.window.map_or(0, |window| (row + 1).saturating_sub(window))
    }

    /// Width of a head in whole units.
    fn padded(&self) -> usize {
        self.head_dim.next_multiple_of(LANES)
    }
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

/// Parts of a head's width that tiles are as wide as.
fn head_columns(shape: &AttentionShape) -> impl Iterator<Item = Range<usize>> + use<> {
    const WIDE: usize = MAX_VECTORS * LANES;
    let head_dim = shape.head_dim;
    (0..head_dim).step_by(WIDE).map(move |start| start..(start + WIDE).min(head_dim))
}

/// `target[rows, keys] = queries · keysᵀ` for the keys of a piece, the first in the place's first
/// column.
///
/// # Safety
/// Nothing else reads or writes the rows of `place` meanwhile.
#[expect(clippy::too_many_arguments, reason = "the coordinates of a product in three matrices")]
unsafe fn scores(
    layout: &Layout,
    rows: usize,
    (left, k_len): (LeftOperand<'_>, usize),
    keys: &Panels,
    kv_head: usize,
    piece: &Piece,
    target: &SharedOutput<'_>,
    region: OutputRegion,
) {
    for (index, first) in (0..piece.keys).step_by(PANEL).enumerate() {
        let terms = [GemmTerm {
            left,
            right: keys.right(kv_head, piece, index),
            k_len,
            right_is_bf16: false,
        }];
        let columns = (piece.keys - first).min(PANEL);
        let region = OutputRegion { start: region.start + first, columns, ..region };
        // SAFETY: the caller's promise.
        unsafe {
            multiply_rows(layout.isa, rows, &terms, AccumulateMode::Overwrite, target, region)
        };
    }
}

/// A block's rows of words, one word or more for each pair of keys, times the rows of `right` that
/// belong to these keys.
///
/// # Safety
/// Nothing else reads or writes the rows of `place` meanwhile.
#[expect(clippy::too_many_arguments, reason = "the coordinates of a product in three matrices")]
unsafe fn multiply_over_keys(
    layout: &Layout,
    seen: &Seen,
    block: &Block,
    left: &[u32],
    right: &Across,
    kv_head: usize,
    target: &SharedOutput<'_>,
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
        let mut pieces = layout.pieces(seen, block).peekable();
        while let Some(piece) = pieces.next() {
            terms[count] = GemmTerm {
                left: LeftOperand {
                    elements: left,
                    start: packed_len(isa, piece.column),
                    row_stride: width,
                    k_stride: 1,
                },
                right: right.keys(kv_head, &piece, part.start),
                k_len: packed_len(isa, piece.keys),
                right_is_bf16: false,
            };
            count += 1;
            if count == MAX_TERMS || pieces.peek().is_none() {
                // SAFETY: the caller's promise.
                unsafe { multiply_rows(isa, block.rows, &terms[..count], mode, target, region) };
                (count, mode) = (0, AccumulateMode::AddScaled(1.0));
            }
        }
    }
}
