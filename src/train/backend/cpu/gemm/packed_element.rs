//! PackedMatrix elements: what the tiles multiply. An element is 32 bits: one f32 value, or a k-pair, which is
//! two bf16 values that follow each other along the k dimension of a product, the earlier in the low bits.
//!
//! Rows that run along k are packed by [`pack_row`]. Rows that lie across k, such as the values of tokens
//! where k runs over tokens, are interleaved to k-pairs by [`pack_k_pair`].

use crate::train::backend::cpu::isa::Isa;

/// Values along k that one packed element holds.
pub fn values_per_element(isa: Isa) -> usize {
    if isa == Isa::Bf16 { 2 } else { 1 }
}

/// PackedMatrix elements that hold `k_len` values.
pub fn packed_len(isa: Isa, k_len: usize) -> usize {
    k_len.div_ceil(values_per_element(isa))
}

/// Packs a row that runs along k. The rest of `packed` is filled with zeros.
///
/// # Panics
/// When `packed` is shorter than the row needs.
pub fn pack_row(isa: Isa, row: &[f32], packed: &mut [u32]) {
    if isa != Isa::Bf16 {
        for (element, value) in packed.iter_mut().zip(row) {
            *element = value.to_bits();
        }
        packed[row.len()..].fill(0);
        return;
    }
    let (used, rest) = packed.split_at_mut(row.len().div_ceil(2));
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the CPU has the level, and there are half as many elements as values.
    unsafe {
        x86::pack_row(row, used);
    }
    rest.fill(0);
}

/// Packs rows that lie across k: in bf16 the k-pairs of two rows (zeros in place of a missing second
/// row), in f32 the first row alone.
///
/// # Panics
/// When the second row or `packed` is shorter than `first`.
pub fn pack_k_pair(isa: Isa, first: &[f32], second: Option<&[f32]>, packed: &mut [u32]) {
    if isa != Isa::Bf16 {
        for (element, value) in packed[..first.len()].iter_mut().zip(first) {
            *element = value.to_bits();
        }
        return;
    }
    let mut whole = 0;
    if let Some(second) = second {
        whole = first.len() / 16 * 16;
        assert!(second.len() >= whole && packed.len() >= whole);
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the CPU has the level, and `whole` is a multiple of 16 within all three slices.
        unsafe {
            x86::pack_k_pair(&first[..whole], &second[..whole], &mut packed[..whole]);
        }
    }
    for column in whole..first.len() {
        packed[column] = k_pair(first[column], second.map_or(0.0, |second| second[column]));
    }
}

/// Unpacks a row whose elements are every `stride`-th of `packed` from `start` on.
pub fn unpack(isa: Isa, packed: &[u32], start: usize, stride: usize, into: &mut [f32]) {
    let per_element = values_per_element(isa);
    for (index, value) in into.iter_mut().enumerate() {
        let element = packed[start + index / per_element * stride];
        let bits = match per_element {
            2 if index % 2 == 0 => element << 16,
            2 => element & 0xffff_0000,
            _ => element,
        };
        *value = f32::from_bits(bits);
    }
}

/// The k-pair of two values, each rounded to the nearest bf16 value.
fn k_pair(low: f32, high: f32) -> u32 {
    let low = half::bf16::from_f32(low).to_bits();
    let high = half::bf16::from_f32(high).to_bits();
    u32::from(low) | (u32::from(high) << 16)
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    /// # Safety
    /// The CPU has AVX-512 BF16; there are half as many elements as values, rounded up.
    #[target_feature(enable = "avx512f,avx512bf16")]
    pub(in crate::train::backend::cpu) unsafe fn pack_row(row: &[f32], packed: &mut [u32]) {
        let (row, rest) = row.as_chunks::<32>();
        let (packed, rest_packed) = packed.split_at_mut(row.len() * 16);
        for (row, packed) in row.iter().zip(packed.chunks_exact_mut(16)) {
            // SAFETY: both are of a register or two; __m512bh is 64 plain bytes.
            unsafe {
                let low = _mm512_loadu_ps(row.as_ptr());
                let high = _mm512_loadu_ps(row.as_ptr().add(16));
                let both = _mm512_cvtne2ps_pbh(high, low);
                let both = std::mem::transmute::<__m512bh, __m512i>(both);
                _mm512_storeu_si512(packed.as_mut_ptr().cast(), both);
            }
        }
        if rest.is_empty() {
            return;
        }
        let first = |count: usize| (u64::MAX >> (64 - count)) as u32;
        let (loaded, stored) = (first(rest.len()), first(rest_packed.len()));
        // SAFETY: the masks end with the slices, each of at least one and fewer than a register's.
        unsafe {
            let low = _mm512_maskz_loadu_ps(loaded as __mmask16, rest.as_ptr());
            let after = rest.as_ptr().wrapping_add(16);
            let high = _mm512_maskz_loadu_ps((loaded >> 16) as __mmask16, after);
            let both = _mm512_cvtne2ps_pbh(high, low);
            let both = std::mem::transmute::<__m512bh, __m512i>(both);
            _mm512_mask_storeu_epi32(rest_packed.as_mut_ptr().cast(), stored as __mmask16, both);
        }
    }

    /// # Safety
    /// The CPU has AVX-512 BF16; all three are equally long, a multiple of 16.
    #[target_feature(enable = "avx512f,avx512bf16")]
    pub(in crate::train::backend::cpu) unsafe fn pack_k_pair(
        first: &[f32],
        second: &[f32],
        packed: &mut [u32],
    ) {
        let rows = first.chunks_exact(16).zip(second.chunks_exact(16));
        for ((first, second), packed) in rows.zip(packed.chunks_exact_mut(16)) {
            // SAFETY: all three chunks are 64 bytes; __m256bh is 32 plain bytes.
            unsafe {
                let widened = |row: &[f32]| {
                    let narrow = _mm512_cvtneps_pbh(_mm512_loadu_ps(row.as_ptr()));
                    _mm512_cvtepu16_epi32(std::mem::transmute::<__m256bh, __m256i>(narrow))
                };
                let high = _mm512_slli_epi32::<16>(widened(second));
                let element = _mm512_or_si512(widened(first), high);
                _mm512_storeu_si512(packed.as_mut_ptr().cast(), element);
            }
        }
    }
}
