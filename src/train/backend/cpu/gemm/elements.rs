//! Words: what the tiles multiply. A word is 32 bits: one float, or two bfloat16 numbers that follow
//! each other along the depth of a product, the earlier in the low half.

use crate::train::backend::cpu::isa::Isa;

/// Numbers in a word.
pub fn numbers_in_word(isa: Isa) -> usize {
    if isa == Isa::Bf16 { 2 } else { 1 }
}

/// Words that hold `depth` numbers.
pub fn words(isa: Isa, depth: usize) -> usize {
    depth.div_ceil(numbers_in_word(isa))
}

/// The words of a row that runs along the depth. Zeros stand behind its end.
///
/// # Panics
/// When there are fewer `words` than the row needs.
pub fn along(isa: Isa, row: &[f32], words: &mut [u32]) {
    if isa != Isa::Bf16 {
        for (word, value) in words.iter_mut().zip(row) {
            *word = value.to_bits();
        }
        words[row.len()..].fill(0);
        return;
    }
    let (used, rest) = words.split_at_mut(row.len().div_ceil(2));
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the level is there, and there are half as many words as numbers.
    unsafe {
        x86::along(row, used);
    }
    rest.fill(0);
}

/// The words of rows that lie across the depth: in bfloat16 of two rows (the second of zeros where
/// there is none), else of the first alone.
///
/// # Panics
/// When the rows or `words` are shorter than `first`.
pub fn across(isa: Isa, first: &[f32], second: Option<&[f32]>, words: &mut [u32]) {
    if isa != Isa::Bf16 {
        for (word, value) in words[..first.len()].iter_mut().zip(first) {
            *word = value.to_bits();
        }
        return;
    }
    let mut whole = 0;
    if let Some(second) = second {
        whole = first.len() / 16 * 16;
        assert!(second.len() >= whole && words.len() >= whole);
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the level is there, and `whole` is a multiple of 16 within all three slices.
        unsafe {
            x86::across(&first[..whole], &second[..whole], &mut words[..whole]);
        }
    }
    for column in whole..first.len() {
        words[column] = pack(first[column], second.map_or(0.0, |second| second[column]));
    }
}

/// The numbers of a row of words, every `stride`-th from `start`.
pub fn read(isa: Isa, words: &[u32], start: usize, stride: usize, into: &mut [f32]) {
    let per_word = numbers_in_word(isa);
    for (index, value) in into.iter_mut().enumerate() {
        let word = words[start + index / per_word * stride];
        let bits = match per_word {
            2 if index % 2 == 0 => word << 16,
            2 => word & 0xffff_0000,
            _ => word,
        };
        *value = f32::from_bits(bits);
    }
}

/// bfloat16 bits of two floats, rounded to nearest even.
fn pack(low: f32, high: f32) -> u32 {
    let low = half::bf16::from_f32(low).to_bits();
    let high = half::bf16::from_f32(high).to_bits();
    u32::from(low) | (u32::from(high) << 16)
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    /// # Safety
    /// The CPU has AVX-512 BF16; there are half as many words as numbers, one more where these are odd.
    #[target_feature(enable = "avx512f,avx512bf16")]
    pub(in crate::train::backend::cpu) unsafe fn along(row: &[f32], words: &mut [u32]) {
        let (row, rest) = row.as_chunks::<32>();
        let (words, rest_words) = words.split_at_mut(row.len() * 16);
        for (row, words) in row.iter().zip(words.chunks_exact_mut(16)) {
            // SAFETY: both are of a register or two; __m512bh is 64 plain bytes.
            unsafe {
                let low = _mm512_loadu_ps(row.as_ptr());
                let high = _mm512_loadu_ps(row.as_ptr().add(16));
                let both = _mm512_cvtne2ps_pbh(high, low);
                let both = std::mem::transmute::<__m512bh, __m512i>(both);
                _mm512_storeu_si512(words.as_mut_ptr().cast(), both);
            }
        }
        if rest.is_empty() {
            return;
        }
        let first = |count: usize| (u64::MAX >> (64 - count)) as u32;
        let (numbers, stored) = (first(rest.len()), first(rest_words.len()));
        // SAFETY: the masks end with the slices, each of at least one and fewer than a register's.
        unsafe {
            let low = _mm512_maskz_loadu_ps(numbers as __mmask16, rest.as_ptr());
            let after = rest.as_ptr().wrapping_add(16);
            let high = _mm512_maskz_loadu_ps((numbers >> 16) as __mmask16, after);
            let both = _mm512_cvtne2ps_pbh(high, low);
            let both = std::mem::transmute::<__m512bh, __m512i>(both);
            _mm512_mask_storeu_epi32(rest_words.as_mut_ptr().cast(), stored as __mmask16, both);
        }
    }

    /// # Safety
    /// The CPU has AVX-512 BF16; all three are equally long, a multiple of 16.
    #[target_feature(enable = "avx512f,avx512bf16")]
    pub(in crate::train::backend::cpu) unsafe fn across(
        first: &[f32],
        second: &[f32],
        words: &mut [u32],
    ) {
        let rows = first.chunks_exact(16).zip(second.chunks_exact(16));
        for ((first, second), words) in rows.zip(words.chunks_exact_mut(16)) {
            // SAFETY: all three chunks are 64 bytes; __m256bh is 32 plain bytes.
            unsafe {
                let widened = |row: &[f32]| {
                    let narrow = _mm512_cvtneps_pbh(_mm512_loadu_ps(row.as_ptr()));
                    _mm512_cvtepu16_epi32(std::mem::transmute::<__m256bh, __m256i>(narrow))
                };
                let high = _mm512_slli_epi32::<16>(widened(second));
                let word = _mm512_or_si512(widened(first), high);
                _mm512_storeu_si512(words.as_mut_ptr().cast(), word);
            }
        }
    }
}
