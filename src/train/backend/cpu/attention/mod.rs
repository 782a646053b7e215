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

use super::gemm::elements::words;
use super::gemm::packed::{PANEL, TERMS, pass};
use super::gemm::tile::{Left, MOST_UNITS, Place, Store, Target, Term, UNIT};
use crate::train::backend::AttentionShape;
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
        self.head_dim.next_multiple_of(UNIT)
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
    const WIDE: usize = MOST_UNITS * UNIT;
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
    (left, depth): (Left<'_>, usize),
    keys: &Panels,
    kv_head: usize,
    piece: &Piece,
    target: &Target<'_>,
    place: Place,
) {
    for (index, first) in (0..piece.keys).step_by(PANEL).enumerate() {
        let terms = [Term { left, right: keys.right(kv_head, piece, index), depth, halves: false }];
        let columns = (piece.keys - first).min(PANEL);
        let place = Place { start: place.start + first, columns, ..place };
        // SAFETY: the caller's promise.
        unsafe { pass(layout.isa, rows, &terms, Store::Overwrite, target, place) };
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
    target: &Target<'_>,
    place: Place,
) {
    let isa = layout.isa;
    let width = words(isa, block.columns);
    for part in head_columns(&layout.shape) {
        let place = Place { start: place.start + part.start, columns: part.len(), ..place };
        let mut terms = [Term::default(); TERMS];
        let mut count = 0;
        let mut store = Store::Overwrite;
        let mut pieces = layout.pieces(seen, block).peekable();
        while let Some(piece) = pieces.next() {
            terms[count] = Term {
                left: Left {
                    words: left,
                    start: words(isa, piece.column),
                    row_stride: width,
                    depth_stride: 1,
                },
                right: right.keys(kv_head, &piece, part.start),
                depth: words(isa, piece.keys),
                halves: false,
            };
            count += 1;
            if count == TERMS || pieces.peek().is_none() {
                // SAFETY: the caller's promise.
                unsafe { pass(isa, block.rows, &terms[..count], store, target, place) };
                (count, store) = (0, Store::Add(1.0));
            }
        }
    }
}
