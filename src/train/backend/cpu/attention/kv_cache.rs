//! The KV cache of a sequence, in pages of tokens that sequences with a common prefix share.
//!
//! A page holds the keys and values of all layers, packed for the products of attention: keys as a
//! transposed panel (k is the width of a head), values in k-pairs (k is the tokens). A sequence grows by
//! pages, so that nothing is copied. Shared pages are copied on write.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::train::backend::AttentionShape;
use crate::train::backend::cpu::gemm::packed_element::{pack_row, packed_len, values_per_element};
use crate::train::backend::cpu::gemm::packed_matrix::PANEL;
use crate::train::backend::cpu::gemm::tile::{LANES, RightOperand};
use crate::train::backend::cpu::isa::Isa;

/// Tokens of a page: one panel of keys.
pub const PAGE_TOKENS: usize = PANEL;

/// Bytes of all pages in memory.
#[derive(Debug, Default)]
pub struct PageMemory(AtomicU64);

impl PageMemory {
    /// Bytes.
    pub fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Layout of a page.
#[derive(Debug, Clone, Copy)]
struct PageLayout {
    isa: Isa,
    layers: usize,
    kv_heads: usize,
    head_dim: usize,
}

impl PageLayout {
    /// Packed elements of a key.
    fn k_len(&self) -> usize {
        packed_len(self.isa, self.head_dim)
    }

    /// Width of a value in whole vectors.
    fn padded(&self) -> usize {
        self.head_dim.next_multiple_of(LANES)
    }

    fn keys_len(&self) -> usize {
        self.k_len() * PAGE_TOKENS
    }

    fn values_len(&self) -> usize {
        packed_len(self.isa, PAGE_TOKENS) * self.padded()
    }

    /// Start of a head's keys; its values follow.
    fn start(&self, layer: usize, head: usize) -> usize {
        (layer * self.kv_heads + head) * (self.keys_len() + self.values_len())
    }

    fn page_len(&self) -> usize {
        self.start(self.layers, 0)
    }
}

/// Keys and values of up to [`PAGE_TOKENS`] tokens, of all layers.
struct KvPage {
    elements: Vec<u32>,
    memory: Arc<PageMemory>,
}

impl KvPage {
    fn new(elements: Vec<u32>, memory: &Arc<PageMemory>) -> Self {
        memory.0.fetch_add(size_of_val(elements.as_slice()) as u64, Ordering::Relaxed);
        Self { elements, memory: Arc::clone(memory) }
    }
}

impl Drop for KvPage {
    fn drop(&mut self) {
        self.memory.0.fetch_sub(size_of_val(self.elements.as_slice()) as u64, Ordering::Relaxed);
    }
}

/// Keys and values of one sequence.
pub struct CpuKvCache {
    layout: PageLayout,
    pages: Vec<Arc<KvPage>>,
    length: usize,
    memory: Arc<PageMemory>,
}

impl CpuKvCache {
    /// An empty cache.
    pub fn new(isa: Isa, layers: usize, shape: &AttentionShape, memory: &Arc<PageMemory>) -> Self {
        let layout = PageLayout { isa, layers, kv_heads: shape.kv_heads, head_dim: shape.head_dim };
        Self { layout, pages: Vec::new(), length: 0, memory: Arc::clone(memory) }
    }

    /// Cached tokens.
    pub fn length(&self) -> usize {
        self.length
    }

    /// Bytes of a page for a model of these layers.
    pub fn page_bytes(isa: Isa, layers: usize, shape: &AttentionShape) -> u64 {
        let layout = PageLayout { isa, layers, kv_heads: shape.kv_heads, head_dim: shape.head_dim };
        (layout.page_len() * size_of::<u32>()) as u64
    }

    /// The first `length` tokens, for another sequence; the pages are shared.
    ///
    /// # Panics
    /// When the cache is shorter.
    pub fn prefix(&self, length: usize) -> Self {
        assert!(length <= self.length);
        let pages = self.pages[..length.div_ceil(PAGE_TOKENS)].to_vec();
        Self { layout: self.layout, pages, length, memory: Arc::clone(&self.memory) }
    }

    /// Makes room for `more` tokens, in pages that only this sequence uses.
    pub fn reserve(&mut self, more: usize) {
        let used = self.length % PAGE_TOKENS;
        let last = self.length / PAGE_TOKENS;
        if used > 0 && more > 0 && Arc::get_mut(&mut self.pages[last]).is_none() {
            let mut copied = self.pages[last].elements.clone();
            self.clear_values(&mut copied, used);
            self.pages[last] = Arc::new(KvPage::new(copied, &self.memory));
        }
        while self.pages.len() * PAGE_TOKENS < self.length + more {
            let blank = vec![0; self.layout.page_len()];
            self.pages.push(Arc::new(KvPage::new(blank, &self.memory)));
        }
    }

    /// Clears the values of a copied page from token `used` on, which another sequence wrote.
    fn clear_values(&self, page: &mut [u32], used: usize) {
        let layout = &self.layout;
        let per_element = values_per_element(layout.isa);
        for head in 0..layout.layers * layout.kv_heads {
            let start = layout.start(0, head) + layout.keys_len();
            let values = &mut page[start..][..layout.values_len()];
            let (used_values, cleared) =
                values.split_at_mut(used.div_ceil(per_element) * layout.padded());
            cleared.fill(0);
            if !used.is_multiple_of(per_element) {
                let from = used_values.len() - layout.padded();
                for element in &mut used_values[from..] {
                    *element &= 0xffff;
                }
            }
        }
    }

    /// Writes the keys and values of new tokens of one layer; both are rows of `kv_heads · head_dim`. The
    /// tokens count after [`CpuKvCache::advance`], which follows the last layer.
    ///
    /// # Panics
    /// Without [`CpuKvCache::reserve`].
    pub fn write(&mut self, layer: usize, keys: &[f32], values: &[f32]) {
        let Self { layout, pages, length, .. } = self;
        let (head_dim, isa) = (layout.head_dim, layout.isa);
        let width = layout.kv_heads * head_dim;
        let mut packed_key = vec![0; layout.k_len()];
        let rows = keys.chunks_exact(width).zip(values.chunks_exact(width));
        for (index, (keys, values)) in rows.enumerate() {
            let (page, token) = ((*length + index) / PAGE_TOKENS, (*length + index) % PAGE_TOKENS);
            let Some(page) = Arc::get_mut(&mut pages[page]) else {
                unreachable!("only this sequence uses a reserved page");
            };
            for head in 0..layout.kv_heads {
                let start = layout.start(layer, head);
                let part = head * head_dim..(head + 1) * head_dim;
                pack_row(isa, &keys[part.clone()], &mut packed_key);
                let into = page.elements[start + token..].iter_mut().step_by(PAGE_TOKENS);
                for (element, into) in packed_key.iter().zip(into) {
                    *into = *element;
                }
                let values = &values[part];
                let row = start + layout.keys_len();
                let row = row + token / values_per_element(isa) * layout.padded();
                let into = &mut page.elements[row..][..head_dim];
                pack_value(isa, values, token, into);
            }
        }
    }

    /// Counts the tokens that [`CpuKvCache::write`] wrote.
    pub fn advance(&mut self, tokens: usize) {
        self.length += tokens;
    }

    /// The keys of a page as the right operand of a product over the width of a head.
    pub fn keys(&self, layer: usize, head: usize, page: usize) -> RightOperand<'_> {
        let start = self.layout.start(layer, head);
        RightOperand { elements: &self.pages[page].elements, start, stride: PAGE_TOKENS }
    }

    /// The values of a page from `column` on as the right operand of a product over tokens.
    pub fn values(
        &self,
        layer: usize,
        head: usize,
        page: usize,
        column: usize,
    ) -> RightOperand<'_> {
        let start = self.layout.start(layer, head) + self.layout.keys_len() + column;
        RightOperand { elements: &self.pages[page].elements, start, stride: self.layout.padded() }
    }
}

/// Packs the values of token number `token` of a page; in bf16 the next token completes the pair.
fn pack_value(isa: Isa, values: &[f32], token: usize, into: &mut [u32]) {
    for (value, element) in values.iter().zip(into) {
        *element = match (isa, token % 2) {
            (Isa::Bf16, 0) => u32::from(half::bf16::from_f32(*value).to_bits()),
            (Isa::Bf16, _) => {
                (*element & 0xffff) | (u32::from(half::bf16::from_f32(*value).to_bits()) << 16)
            }
            _ => value.to_bits(),
        };
    }
}

/// Pages of the tokens at these positions.
pub fn pages(positions: &Range<usize>) -> Range<usize> {
    positions.start / PAGE_TOKENS..positions.end.div_ceil(PAGE_TOKENS)
}
