//! Queries, keys and values packed for the products of attention, head by head.

use std::sync::Arc;

use rayon::prelude::*;

use super::layout::{BatchLayout, KeyRange, KeySlice, QueryBlock};
use crate::train::backend::cpu::buffer_pool::{BufferPool, CpuMatrix};
use crate::train::backend::cpu::gemm::packed_element::{
    pack_k_pair, pack_row, packed_len, values_per_element,
};
use crate::train::backend::cpu::gemm::packed_matrix::PANEL;
use crate::train::backend::cpu::gemm::tile::{LeftOperand, RightOperand};

/// Heads packed k-major, k running along the width of a head: a left operand.
pub(super) struct KMajor {
    elements: CpuMatrix,
    tokens: usize,
    width: usize,
}

impl KMajor {
    /// Packs `values` of `[tokens, heads · head_dim]`.
    pub fn new(layout: &BatchLayout, pool: &Arc<BufferPool>, values: &[f32], heads: usize) -> Self {
        let (tokens, head_dim) = (layout.tokens(), layout.shape.head_dim);
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

    /// A head's rows from `row` on as the left operand of a product, and their length along k.
    pub fn left(&self, head: usize, row: usize) -> (LeftOperand<'_>, usize) {
        let start = (head * self.tokens + row) * self.width;
        let elements = self.elements.packed_elements();
        (LeftOperand { elements, start, row_stride: self.width, k_stride: 1 }, self.width)
    }
}

/// Heads packed in transposed panels of tokens, k running along the width of a head: a right operand.
pub(super) struct TransposedPanels {
    elements: CpuMatrix,
    panels: usize,
    k_len: usize,
}

impl TransposedPanels {
    /// Packs `values` of `[tokens, heads · head_dim]`.
    pub fn new(layout: &BatchLayout, pool: &Arc<BufferPool>, values: &[f32], heads: usize) -> Self {
        /// Elements of a row that are packed at once.
        const PART: usize = 64;
        let (isa, head_dim) = (layout.isa, layout.shape.head_dim);
        let k_len = packed_len(isa, head_dim);
        let mut made = pool.acquire(heads * layout.panels, k_len * PANEL);
        let all =
            made.packed_elements_mut().par_chunks_exact_mut((layout.panels * k_len * PANEL).max(1));
        all.enumerate().for_each(|(head, into)| {
            let mut part = [0; PART];
            for seen in &layout.segments {
                let own = seen.own();
                for (index, row) in own.rows.clone().enumerate() {
                    let panel = (own.panel + index / PANEL) * k_len * PANEL;
                    let values = &values[(row * heads + head) * head_dim..][..head_dim];
                    let at_once = PART * values_per_element(isa);
                    for (number, values) in values.chunks(at_once).enumerate() {
                        let count = packed_len(isa, values.len());
                        pack_row(isa, values, &mut part[..count]);
                        let start = panel + number * PART * PANEL + index % PANEL;
                        for (element, into) in
                            part[..count].iter().zip(into[start..].iter_mut().step_by(PANEL))
                        {
                            *into = *element;
                        }
                    }
                }
                // Columns after the last token are multiplied as well; their products are not read.
                let used = own.rows.len() % PANEL;
                if used > 0 {
                    let last = (own.panel + own.rows.len() / PANEL) * k_len * PANEL;
                    for row in into[last..][..k_len * PANEL].chunks_exact_mut(PANEL) {
                        row[used..].fill(0);
                    }
                }
            }
        });
        Self { elements: made, panels: layout.panels, k_len }
    }

    /// Panel number `index` of a key slice.
    pub fn right(&self, head: usize, slice: &KeySlice, index: usize) -> RightOperand<'_> {
        let panel = head * self.panels + slice.panel + index;
        RightOperand {
            elements: self.elements.packed_elements(),
            start: panel * self.k_len * PANEL,
            stride: PANEL,
        }
    }
}

/// Heads packed in k-pairs, k running over tokens: a right operand.
pub(super) struct KPairs {
    elements: CpuMatrix,
    rows: usize,
    width: usize,
}

impl KPairs {
    /// Packs `values` of `[tokens, heads · head_dim]`.
    pub fn new(layout: &BatchLayout, pool: &Arc<BufferPool>, values: &[f32], heads: usize) -> Self {
        let (isa, head_dim, width) = (layout.isa, layout.shape.head_dim, layout.shape.padded());
        let per_element = values_per_element(isa);
        let mut made = pool.acquire(heads * layout.packed_rows, width);
        let all =
            made.packed_elements_mut().par_chunks_exact_mut((layout.packed_rows * width).max(1));
        all.enumerate().for_each(|(head, into)| {
            let row = |row: usize| &values[(row * heads + head) * head_dim..][..head_dim];
            for seen in &layout.segments {
                let own = seen.own();
                let into = into[own.packed_row * width..].chunks_exact_mut(width);
                for (first, into) in own.rows.clone().step_by(per_element).zip(into) {
                    let second =
                        (per_element == 2 && first + 1 < own.rows.end).then(|| row(first + 1));
                    pack_k_pair(isa, row(first), second, into);
                    into[head_dim..].fill(0);
                }
            }
        });
        Self { elements: made, rows: layout.packed_rows, width }
    }

    /// Columns of a head from `column` on, over the tokens of a key slice.
    pub fn keys(&self, head: usize, slice: &KeySlice, column: usize) -> RightOperand<'_> {
        let start = (head * self.rows + slice.packed_row) * self.width + column;
        RightOperand { elements: self.elements.packed_elements(), start, stride: self.width }
    }

    /// Columns of a head from `column` on, over the queries of a block.
    pub fn queries(
        &self,
        layout: &BatchLayout,
        head: usize,
        range: &KeyRange,
        block: &QueryBlock,
        column: usize,
    ) -> RightOperand<'_> {
        let row = range.packed_row + block.first / values_per_element(layout.isa);
        let start = (head * self.rows + row) * self.width + column;
        RightOperand { elements: self.elements.packed_elements(), start, stride: self.width }
    }
}
