//! Keys and values of a text, kept in pages of tokens that texts share.
//!
//! A page holds those of all layers, as attention multiplies them: keys as a panel (the depth is the
//! width of a head), values with the tokens as the depth. A text grows by pages, so that nothing is
//! copied; texts that begin alike share whole pages, and copy the one that they write into.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::train::backend::AttentionShape;
use crate::train::backend::cpu::gemm::packed_element::{pack_row, packed_len, values_per_element};
use crate::train::backend::cpu::gemm::packed_matrix::PANEL;
use crate::train::backend::cpu::gemm::tile::{LANES, RightOperand};
use crate::train::backend::cpu::isa::Isa;

/// Tokens of a page: one panel of keys.
pub const PAGE: usize = PANEL;

/// Bytes of all pages that exist.
#[derive(Debug, Default)]
pub struct Meter(AtomicU64);

impl Meter {
    /// Bytes.
    pub fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// How a page is laid out.
#[derive(Debug, Clone, Copy)]
struct Layout {
    isa: Isa,
    layers: usize,
    kv_heads: usize,
    head_dim: usize,
}

impl Layout {
    /// Words of a key.
    fn depth(&self) -> usize {
        packed_len(self.isa, self.head_dim)
    }

    /// Width of a value in whole units.
    fn padded(&self) -> usize {
        self.head_dim.next_multiple_of(LANES)
    }

    fn words_of_keys(&self) -> usize {
        self.depth() * PAGE
    }

    fn words_of_values(&self) -> usize {
        packed_len(self.isa, PAGE) * self.padded()
    }

    /// Where a head's keys begin; its values follow.
    fn start(&self, layer: usize, head: usize) -> usize {
        (layer * self.kv_heads + head) * (self.words_of_keys() + self.words_of_values())
    }

    fn words_of_page(&self) -> usize {
        self.start(self.layers, 0)
    }
}

/// Keys and values of up to [`PAGE`] tokens, of all layers.
struct Page {
    elements: Vec<u32>,
    meter: Arc<Meter>,
}

impl Page {
    fn new(elements: Vec<u32>, meter: &Arc<Meter>) -> Self {
        meter.0.fetch_add(size_of_val(elements.as_slice()) as u64, Ordering::Relaxed);
        Self { elements, meter: Arc::clone(meter) }
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        self.meter.0.fetch_sub(size_of_val(self.elements.as_slice()) as u64, Ordering::Relaxed);
    }
}

/// Keys and values of one text.
pub struct Cache {
    layout: Layout,
    pages: Vec<Arc<Page>>,
    length: usize,
    meter: Arc<Meter>,
}

impl Cache {
    /// Of no token yet.
    pub fn new(isa: Isa, layers: usize, shape: &AttentionShape, meter: &Arc<Meter>) -> Self {
        let layout = Layout { isa, layers, kv_heads: shape.kv_heads, head_dim: shape.head_dim };
        Self { layout, pages: Vec::new(), length: 0, meter: Arc::clone(meter) }
    }

    /// Tokens.
    pub fn length(&self) -> usize {
        self.length
    }

    /// Bytes of a page of a model's.
    pub fn bytes_of_page(isa: Isa, layers: usize, shape: &AttentionShape) -> u64 {
        let layout = Layout { isa, layers, kv_heads: shape.kv_heads, head_dim: shape.head_dim };
        (layout.words_of_page() * size_of::<u32>()) as u64
    }

    /// The same beginning of `length` tokens, for another text; its pages are there once.
    ///
    /// # Panics
    /// When it is not as long.
    pub fn beginning(&self, length: usize) -> Self {
        assert!(length <= self.length);
        let pages = self.pages[..length.div_ceil(PAGE)].to_vec();
        Self { layout: self.layout, pages, length, meter: Arc::clone(&self.meter) }
    }

    /// Makes room for `more` tokens, in pages that are this text's alone.
    pub fn reserve(&mut self, more: usize) {
        let used = self.length % PAGE;
        let last = self.length / PAGE;
        if used > 0 && more > 0 && Arc::get_mut(&mut self.pages[last]).is_none() {
            let mut copied = self.pages[last].elements.clone();
            self.clear_values(&mut copied, used);
            self.pages[last] = Arc::new(Page::new(copied, &self.meter));
        }
        while self.pages.len() * PAGE < self.length + more {
            let blank = vec![0; self.layout.words_of_page()];
            self.pages.push(Arc::new(Page::new(blank, &self.meter)));
        }
    }

    /// Values from token `used` of a page on become zero: what another text wrote there.
    fn clear_values(&self, page: &mut [u32], used: usize) {
        let layout = &self.layout;
        let per_element = values_per_element(layout.isa);
        for head in 0..layout.layers * layout.kv_heads {
            let start = layout.start(0, head) + layout.words_of_keys();
            let values = &mut page[start..][..layout.words_of_values()];
            let (kept, cleared) = values.split_at_mut(used.div_ceil(per_element) * layout.padded());
            cleared.fill(0);
            if !used.is_multiple_of(per_element) {
                let from = kept.len() - layout.padded();
                for word in &mut kept[from..] {
                    *word &= 0xffff;
                }
            }
        }
    }

    /// Puts the keys and values of tokens behind those that are there, in one layer; both are rows of
    /// `kv_heads · head_dim`. They count once all layers have theirs: [`Cache::advance`].
    ///
    /// # Panics
    /// Without [`Cache::reserve`].
    pub fn put(&mut self, layer: usize, keys: &[f32], values: &[f32]) {
        let Self { layout, pages, length, .. } = self;
        let (head_dim, isa) = (layout.head_dim, layout.isa);
        let width = layout.kv_heads * head_dim;
        let mut key_words = vec![0; layout.depth()];
        let rows = keys.chunks_exact(width).zip(values.chunks_exact(width));
        for (index, (keys, values)) in rows.enumerate() {
            let (page, token) = ((*length + index) / PAGE, (*length + index) % PAGE);
            let Some(page) = Arc::get_mut(&mut pages[page]) else {
                unreachable!("a reserved page is this text's alone");
            };
            for head in 0..layout.kv_heads {
                let start = layout.start(layer, head);
                let part = head * head_dim..(head + 1) * head_dim;
                pack_row(isa, &keys[part.clone()], &mut key_words);
                let into = page.elements[start + token..].iter_mut().step_by(PAGE);
                for (word, into) in key_words.iter().zip(into) {
                    *into = *word;
                }
                let values = &values[part];
                let row = start + layout.words_of_keys();
                let row = row + token / values_per_element(isa) * layout.padded();
                let into = &mut page.elements[row..][..head_dim];
                put_values(isa, values, token, into);
            }
        }
    }

    /// The tokens that [`Cache::put`] put count.
    pub fn advance(&mut self, tokens: usize) {
        self.length += tokens;
    }

    /// The keys of a page's tokens, as the right side of a product over the width of a head.
    pub fn keys(&self, layer: usize, head: usize, page: usize) -> RightOperand<'_> {
        let start = self.layout.start(layer, head);
        RightOperand { elements: &self.pages[page].elements, start, stride: PAGE }
    }

    /// The values of a page's tokens from `column` on, as the right side of a product over tokens.
    pub fn values(
        &self,
        layer: usize,
        head: usize,
        page: usize,
        column: usize,
    ) -> RightOperand<'_> {
        let start = self.layout.start(layer, head) + self.layout.words_of_keys() + column;
        RightOperand { elements: &self.pages[page].elements, start, stride: self.layout.padded() }
    }
}

/// Values of a page's token number `token`, whose word of pairs its neighbour shares.
fn put_values(isa: Isa, values: &[f32], token: usize, into: &mut [u32]) {
    for (value, word) in values.iter().zip(into) {
        *word = match (isa, token % 2) {
            (Isa::Bf16, 0) => u32::from(half::bf16::from_f32(*value).to_bits()),
            (Isa::Bf16, _) => {
                (*word & 0xffff) | (u32::from(half::bf16::from_f32(*value).to_bits()) << 16)
            }
            _ => value.to_bits(),
        };
    }
}

/// Pages that tokens of these positions stand in.
pub fn pages(positions: &Range<usize>) -> Range<usize> {
    positions.start / PAGE..positions.end.div_ceil(PAGE)
}
