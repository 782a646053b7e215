//! Where the rows of a packed batch stand in the words that attention multiplies.

use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;

use crate::train::backend::cpu::buffer_pool::{BufferPool, CpuMatrix};
use crate::train::backend::cpu::gemm::packed_element::{
    pack_k_pair, pack_row, packed_len, values_per_element,
};
use crate::train::backend::cpu::gemm::packed_matrix::PANEL;
use crate::train::backend::cpu::gemm::tile::{LeftOperand, RightOperand};
use crate::train::backend::cpu::isa::Isa;
use crate::train::backend::{AttentionShape, Segment};

/// A run of keys that the queries of a segment see: one of the segments before it, or itself.
#[derive(Debug, Clone)]
pub(super) struct Run {
    /// Its rows in the batch.
    pub rows: Range<usize>,
    /// Position of its first key in the text.
    pub position: usize,
    /// Column of its first key among the scores: its position, but that runs begin with a word.
    pub column: usize,
    /// First of its rows of words across.
    word_row: usize,
    /// First of its panels.
    panel: usize,
}

impl Run {
    /// Columns that it takes, with those that nothing stands in.
    fn columns(&self, isa: Isa) -> usize {
        self.rows.len().next_multiple_of(values_per_element(isa))
    }
}

/// One segment: the runs that it sees, itself last.
#[derive(Debug)]
pub(super) struct Seen {
    pub runs: Vec<Run>,
    /// Index of the first segment of its text.
    pub root: usize,
}

impl Seen {
    /// Its own rows.
    pub fn own(&self) -> &Run {
        &self.runs[self.runs.len() - 1]
    }

    /// Column of the key at `position`.
    pub fn column(&self, position: usize) -> usize {
        let run = self.runs.iter().rev().find(|run| run.position <= position);
        run.map_or(position, |run| run.column + position - run.position)
    }
}

/// A block of queries of a segment, and the keys that any of them sees, from a whole panel on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Block {
    /// Its queries, from the first of their segment.
    pub first: usize,
    /// Number of queries.
    pub rows: usize,
    /// Position of the first key in a panel that is seen.
    first_position: usize,
    /// Its column, from which the block's own columns count.
    base: usize,
    /// Its columns, whole words.
    pub columns: usize,
}

/// The part of a run that a block sees, in whole panels from its beginning.
#[derive(Debug, Clone)]
pub(super) struct Piece {
    /// First row of the batch.
    pub row: usize,
    /// First of the block's columns.
    pub column: usize,
    /// Keys.
    pub keys: usize,
    word_row: usize,
    panel: usize,
}

impl Piece {
    /// Up to `most` of its keys from number `first` on, a whole panel's first.
    pub fn part(&self, layout: &Layout, first: usize, most: usize) -> Self {
        Self {
            row: self.row + first,
            column: self.column + first,
            keys: (self.keys - first).min(most),
            word_row: self.word_row + first / values_per_element(layout.isa),
            panel: self.panel + first / PANEL,
        }
    }
}

/// All segments of a batch.
pub(super) struct Layout {
    pub isa: Isa,
    pub shape: AttentionShape,
    pub segments: Vec<Seen>,
    tokens: usize,
    word_rows: usize,
    panels: usize,
}

impl Layout {
    /// Of a batch's segments; what stands before one is earlier segments.
    pub fn new(isa: Isa, segments: &[Segment], shape: &AttentionShape) -> Self {
        let mut layout = Self {
            isa,
            shape: *shape,
            segments: Vec::with_capacity(segments.len()),
            tokens: segments.last().map_or(0, |segment| segment.rows.end),
            word_rows: 0,
            panels: 0,
        };
        for (index, segment) in segments.iter().enumerate() {
            let mut runs: Vec<Run> = Vec::with_capacity(segment.before.len() + 1);
            let mut root = index;
            for before in &segment.before {
                let earlier =
                    layout.segments.partition_point(|seen| seen.own().rows.start < before.start);
                let earlier_run = layout.segments[earlier].own().clone();
                root = root.min(earlier);
                layout.push(&mut runs, earlier_run);
            }
            let own = Run {
                rows: segment.rows.clone(),
                position: 0,
                column: 0,
                word_row: layout.word_rows,
                panel: layout.panels,
            };
            layout.word_rows += packed_len(isa, own.rows.len());
            layout.panels += own.rows.len().div_ceil(PANEL);
            layout.push(&mut runs, own);
            layout.segments.push(Seen { runs, root });
        }
        layout
    }

    /// Rows of the batch.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Puts a run behind those that are there.
    fn push(&self, runs: &mut Vec<Run>, run: Run) {
        let (position, column) = runs.last().map_or((0, 0), |last| {
            (last.position + last.rows.len(), last.column + last.columns(self.isa))
        });
        runs.push(Run { position, column, ..run });
    }

    /// The block of up to `most` queries from `first` on.
    pub fn block(&self, seen: &Seen, first: usize, most: usize) -> Block {
        let own = seen.own();
        let rows = (own.rows.len() - first).min(most);
        let first_key = self.shape.first_key(own.position + first);
        let run = seen.runs.iter().rev().find(|run| run.position <= first_key);
        let (first_position, base) = run.map_or((0, 0), |run| {
            let panel = (first_key - run.position) / PANEL * PANEL;
            (run.position + panel, run.column + panel)
        });
        let columns = own.column + first + rows - base;
        let columns = columns.next_multiple_of(values_per_element(self.isa));
        Block { first, rows, first_position, base, columns }
    }

    /// The parts of the runs that a block sees.
    pub fn pieces<'a>(&self, seen: &'a Seen, block: &'a Block) -> impl Iterator<Item = Piece> + 'a {
        let per_element = values_per_element(self.isa);
        seen.runs.iter().enumerate().filter_map(move |(index, run)| {
            let is_own = index + 1 == seen.runs.len();
            let end = if is_own { block.first + block.rows } else { run.rows.len() };
            let from = block.first_position.saturating_sub(run.position);
            (from < end).then(|| Piece {
                row: run.rows.start + from,
                column: run.column + from - block.base,
                keys: end - from,
                word_row: run.word_row + from / per_element,
                panel: run.panel + from / PANEL,
            })
        })
    }

    /// The block's columns that its query number `row` sees.
    pub fn visible(&self, seen: &Seen, block: &Block, row: usize) -> Range<usize> {
        let position = seen.own().position + block.first + row;
        let first = seen.column(self.shape.first_key(position)) - block.base;
        first..seen.own().column + block.first + row + 1 - block.base
    }

    /// The block's columns between runs that no key stands in.
    pub fn gaps<'a>(&self, seen: &'a Seen, block: &'a Block) -> impl Iterator<Item = usize> + 'a {
        let isa = self.isa;
        let before = &seen.runs[..seen.runs.len() - 1];
        before.iter().filter_map(move |run| {
            let end = run.column + run.rows.len();
            (run.columns(isa) > run.rows.len() && end >= block.base).then(|| end - block.base)
        })
    }
}

/// A matrix of heads in words: the depth is the width of a head.
pub(super) struct Along {
    elements: CpuMatrix,
    tokens: usize,
    width: usize,
}

impl Along {
    /// Of `values`, `[tokens, heads · head_dim]`.
    pub fn new(layout: &Layout, pool: &Arc<BufferPool>, values: &[f32], heads: usize) -> Self {
        let (tokens, head_dim) = (layout.tokens, layout.shape.head_dim);
        let width = packed_len(layout.isa, head_dim);
        let mut made = pool.acquire(heads * tokens, width);
        let all = made.packed_elements_mut().par_chunks_exact_mut((tokens * width).max(1));
        all.enumerate().for_each(|(head, into)| {
            for (row, into) in into.chunks_exact_mut(width).enumerate() {
                let start = (row * heads + head) * head_dim;
                pack_row(layout.isa, &values[start..][..head_dim], into);
            }
        });
        Self { elements: made, tokens, width }
    }

    /// A head's rows from `row` on, as the left side of a product, and its depth.
    pub fn left(&self, head: usize, row: usize) -> (LeftOperand<'_>, usize) {
        let start = (head * self.tokens + row) * self.width;
        let elements = self.elements.packed_elements();
        (LeftOperand { elements, start, row_stride: self.width, k_stride: 1 }, self.width)
    }
}

/// A matrix of heads in words, each head transposed, in panels of tokens: the depth is the width of a
/// head, as [`Along`]'s is.
pub(super) struct Panels {
    elements: CpuMatrix,
    panels: usize,
    depth: usize,
}

impl Panels {
    /// Of `values`, `[tokens, heads · head_dim]`.
    pub fn new(layout: &Layout, pool: &Arc<BufferPool>, values: &[f32], heads: usize) -> Self {
        /// Words of a row that are made at once.
        const PART: usize = 64;
        let (isa, head_dim) = (layout.isa, layout.shape.head_dim);
        let depth = packed_len(isa, head_dim);
        let mut made = pool.acquire(heads * layout.panels, depth * PANEL);
        let all =
            made.packed_elements_mut().par_chunks_exact_mut((layout.panels * depth * PANEL).max(1));
        all.enumerate().for_each(|(head, into)| {
            let mut part = [0; PART];
            for seen in &layout.segments {
                let own = seen.own();
                for (index, row) in own.rows.clone().enumerate() {
                    let panel = (own.panel + index / PANEL) * depth * PANEL;
                    let values = &values[(row * heads + head) * head_dim..][..head_dim];
                    let at_once = PART * values_per_element(isa);
                    for (number, values) in values.chunks(at_once).enumerate() {
                        let count = packed_len(isa, values.len());
                        pack_row(isa, values, &mut part[..count]);
                        let start = panel + number * PART * PANEL + index % PANEL;
                        for (word, into) in
                            part[..count].iter().zip(into[start..].iter_mut().step_by(PANEL))
                        {
                            *into = *word;
                        }
                    }
                }
                // Columns behind the last token are multiplied, though nobody reads the products.
                let used = own.rows.len() % PANEL;
                if used > 0 {
                    let last = (own.panel + own.rows.len() / PANEL) * depth * PANEL;
                    for row in into[last..][..depth * PANEL].chunks_exact_mut(PANEL) {
                        row[used..].fill(0);
                    }
                }
            }
        });
        Self { elements: made, panels: layout.panels, depth }
    }

    /// Panel number `index` of a piece.
    pub fn right(&self, head: usize, piece: &Piece, index: usize) -> RightOperand<'_> {
        let panel = head * self.panels + piece.panel + index;
        RightOperand {
            elements: self.elements.packed_elements(),
            start: panel * self.depth * PANEL,
            stride: PANEL,
        }
    }
}

/// A matrix of heads in words: the depth is the tokens.
pub(super) struct Across {
    elements: CpuMatrix,
    rows: usize,
    width: usize,
}

impl Across {
    /// Of `values`, `[tokens, heads · head_dim]`.
    pub fn new(layout: &Layout, pool: &Arc<BufferPool>, values: &[f32], heads: usize) -> Self {
        let (isa, head_dim, width) = (layout.isa, layout.shape.head_dim, layout.shape.padded());
        let per_element = values_per_element(isa);
        let mut made = pool.acquire(heads * layout.word_rows, width);
        let all =
            made.packed_elements_mut().par_chunks_exact_mut((layout.word_rows * width).max(1));
        all.enumerate().for_each(|(head, into)| {
            let row = |row: usize| &values[(row * heads + head) * head_dim..][..head_dim];
            for seen in &layout.segments {
                let own = seen.own();
                let into = into[own.word_row * width..].chunks_exact_mut(width);
                for (first, into) in own.rows.clone().step_by(per_element).zip(into) {
                    let second =
                        (per_element == 2 && first + 1 < own.rows.end).then(|| row(first + 1));
                    pack_k_pair(isa, row(first), second, into);
                    into[head_dim..].fill(0);
                }
            }
        });
        Self { elements: made, rows: layout.word_rows, width }
    }

    /// Columns of a head from `column` on, over the tokens of a piece.
    pub fn keys(&self, head: usize, piece: &Piece, column: usize) -> RightOperand<'_> {
        let start = (head * self.rows + piece.word_row) * self.width + column;
        RightOperand { elements: self.elements.packed_elements(), start, stride: self.width }
    }

    /// Columns of a head from `column` on, over the queries of a block.
    pub fn queries(
        &self,
        layout: &Layout,
        head: usize,
        run: &Run,
        block: &Block,
        column: usize,
    ) -> RightOperand<'_> {
        let row = run.word_row + block.first / values_per_element(layout.isa);
        let start = (head * self.rows + row) * self.width + column;
        RightOperand { elements: self.elements.packed_elements(), start, stride: self.width }
    }
}
