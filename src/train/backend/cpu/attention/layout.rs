//! Which keys the queries of a packed batch see, and where both lie in the packed operands.

use std::ops::Range;

use crate::train::backend::cpu::gemm::packed_element::{packed_len, values_per_element};
use crate::train::backend::cpu::gemm::packed_matrix::PANEL;
use crate::train::backend::cpu::gemm::tile::LANES;
use crate::train::backend::cpu::isa::Isa;
use crate::train::backend::{AttentionShape, Segment};

impl AttentionShape {
    /// First key that the query at position `row` of its sequence sees.
    pub(super) fn first_key(&self, row: usize) -> usize {
        self.window.map_or(0, |window| (row + 1).saturating_sub(window))
    }

    /// Width of a head in whole vectors.
    pub(super) fn padded(&self) -> usize {
        self.head_dim.next_multiple_of(LANES)
    }
}

/// Keys that the queries of a segment see: those of a segment before it, or its own.
#[derive(Debug, Clone)]
pub(super) struct KeyRange {
    /// Its rows in the batch.
    pub rows: Range<usize>,
    /// Position of its first key in the sequence.
    pub position: usize,
    /// Column of its first key among the scores: its position, except that ranges begin with a packed element.
    pub column: usize,
    /// First of its rows in `KPairs`.
    pub(super) packed_row: usize,
    /// First of its panels in `TransposedPanels`.
    pub(super) panel: usize,
}

impl KeyRange {
    /// Columns that it takes, including a gap where a packed element is not full.
    fn columns(&self, isa: Isa) -> usize {
        self.rows.len().next_multiple_of(values_per_element(isa))
    }
}

/// The keys that a segment sees, its own last.
#[derive(Debug)]
pub(super) struct VisibleKeys {
    pub ranges: Vec<KeyRange>,
    /// Index of the first segment of its sequence.
    pub root: usize,
}

impl VisibleKeys {
    /// Its own rows.
    pub fn own(&self) -> &KeyRange {
        &self.ranges[self.ranges.len() - 1]
    }

    /// Column of the key at `position`.
    pub fn column(&self, position: usize) -> usize {
        let range = self.ranges.iter().rev().find(|range| range.position <= position);
        range.map_or(position, |range| range.column + position - range.position)
    }
}

/// A block of queries of a segment, and the keys that any of them sees, from the start of a panel on.
#[derive(Debug, Clone, Copy)]
pub(super) struct QueryBlock {
    /// Index of its first query in the segment.
    pub first: usize,
    /// Number of queries.
    pub rows: usize,
    /// Position of the first key of the first panel that is seen.
    first_position: usize,
    /// Column of that key; the block's columns count from it.
    base: usize,
    /// Number of columns, in whole packed elements.
    pub columns: usize,
}

/// The part of a key range that a query block sees, from the start of a panel on.
#[derive(Debug, Clone)]
pub(super) struct KeySlice {
    /// First row of the batch.
    pub row: usize,
    /// First of the block's columns.
    pub column: usize,
    /// Keys.
    pub keys: usize,
    pub(super) packed_row: usize,
    pub(super) panel: usize,
}

impl KeySlice {
    /// Up to `most` of its keys from number `first` on, the first of a panel.
    pub fn subslice(&self, layout: &BatchLayout, first: usize, most: usize) -> Self {
        Self {
            row: self.row + first,
            column: self.column + first,
            keys: (self.keys - first).min(most),
            packed_row: self.packed_row + first / values_per_element(layout.isa),
            panel: self.panel + first / PANEL,
        }
    }
}

/// The segments of a packed batch with their visible keys.
pub(super) struct BatchLayout {
    pub isa: Isa,
    pub shape: AttentionShape,
    pub segments: Vec<VisibleKeys>,
    tokens: usize,
    /// Rows of `KPairs` of each head.
    pub(super) packed_rows: usize,
    /// Panels of `TransposedPanels` of each head.
    pub(super) panels: usize,
}

impl BatchLayout {
    /// The layout of a batch's segments; the prefix of a segment is earlier segments.
    pub fn new(isa: Isa, segments: &[Segment], shape: &AttentionShape) -> Self {
        let mut layout = Self {
            isa,
            shape: *shape,
            segments: Vec::with_capacity(segments.len()),
            tokens: segments.last().map_or(0, |segment| segment.rows.end),
            packed_rows: 0,
            panels: 0,
        };
        for (index, segment) in segments.iter().enumerate() {
            let mut ranges: Vec<KeyRange> = Vec::with_capacity(segment.before.len() + 1);
            let mut root = index;
            for before in &segment.before {
                let earlier =
                    layout.segments.partition_point(|seen| seen.own().rows.start < before.start);
                let earlier_range = layout.segments[earlier].own().clone();
                root = root.min(earlier);
                layout.push(&mut ranges, earlier_range);
            }
            let own = KeyRange {
                rows: segment.rows.clone(),
                position: 0,
                column: 0,
                packed_row: layout.packed_rows,
                panel: layout.panels,
            };
            layout.packed_rows += packed_len(isa, own.rows.len());
            layout.panels += own.rows.len().div_ceil(PANEL);
            layout.push(&mut ranges, own);
            layout.segments.push(VisibleKeys { ranges, root });
        }
        layout
    }

    /// Rows of the batch.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Appends a range.
    fn push(&self, ranges: &mut Vec<KeyRange>, range: KeyRange) {
        let (position, column) = ranges.last().map_or((0, 0), |last| {
            (last.position + last.rows.len(), last.column + last.columns(self.isa))
        });
        ranges.push(KeyRange { position, column, ..range });
    }

    /// The block of up to `most` queries from `first` on.
    pub fn block(&self, seen: &VisibleKeys, first: usize, most: usize) -> QueryBlock {
        let own = seen.own();
        let rows = (own.rows.len() - first).min(most);
        let first_key = self.shape.first_key(own.position + first);
        let range = seen.ranges.iter().rev().find(|range| range.position <= first_key);
        let (first_position, base) = range.map_or((0, 0), |range| {
            let panel = (first_key - range.position) / PANEL * PANEL;
            (range.position + panel, range.column + panel)
        });
        let columns = own.column + first + rows - base;
        let columns = columns.next_multiple_of(values_per_element(self.isa));
        QueryBlock { first, rows, first_position, base, columns }
    }

    /// The parts of the key ranges that a block sees.
    pub fn slices<'a>(
        &self,
        seen: &'a VisibleKeys,
        block: &'a QueryBlock,
    ) -> impl Iterator<Item = KeySlice> + 'a {
        let per_element = values_per_element(self.isa);
        seen.ranges.iter().enumerate().filter_map(move |(index, range)| {
            let is_own = index + 1 == seen.ranges.len();
            let end = if is_own { block.first + block.rows } else { range.rows.len() };
            let from = block.first_position.saturating_sub(range.position);
            (from < end).then(|| KeySlice {
                row: range.rows.start + from,
                column: range.column + from - block.base,
                keys: end - from,
                packed_row: range.packed_row + from / per_element,
                panel: range.panel + from / PANEL,
            })
        })
    }

    /// The block's columns that its query number `row` sees.
    pub fn visible(&self, seen: &VisibleKeys, block: &QueryBlock, row: usize) -> Range<usize> {
        let position = seen.own().position + block.first + row;
        let first = seen.column(self.shape.first_key(position)) - block.base;
        first..seen.own().column + block.first + row + 1 - block.base
    }

    /// The block's columns between ranges that have no key.
    pub fn gaps<'a>(
        &self,
        seen: &'a VisibleKeys,
        block: &'a QueryBlock,
    ) -> impl Iterator<Item = usize> + 'a {
        let isa = self.isa;
        let before = &seen.ranges[..seen.ranges.len() - 1];
        before.iter().filter_map(move |range| {
            let end = range.column + range.rows.len();
            (range.columns(isa) > range.rows.len() && end >= block.base).then(|| end - block.base)
        })
    }
}
