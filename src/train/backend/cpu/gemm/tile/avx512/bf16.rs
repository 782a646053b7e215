//! bf16 tiles on AVX-512 BF16: dot products of bf16 pairs, accumulated in f32.

use std::arch::x86_64::*;
use std::mem::MaybeUninit;

use super::{accumulators, load_accumulators, store_accumulators};
use crate::train::backend::cpu::gemm::tile::operands::{
    AccumulateMode, GemmTerm, LANES, OutputRegion,
};

/// One tile of `rows` rows and `vectors` vectors of columns.
///
/// # Safety
/// The CPU has AVX-512 BF16; rows, columns, k and strides stay inside of the slices, and the region is the
/// caller's.
#[target_feature(enable = "avx512f,avx512bf16")]
pub(in super::super) unsafe fn multiply(
    rows: usize,
    vectors: usize,
    terms: &[GemmTerm<'_>],
    mode: AccumulateMode,
    out: *mut f32,
    region: OutputRegion,
) {
    // SAFETY: the caller's promise, passed on.
    unsafe {
        match vectors {
            4 => for_rows!(multiply_tile, 4, rows, terms, mode, out, region),
            3 => for_rows!(multiply_tile, 3, rows, terms, mode, out, region),
            2 => for_rows!(multiply_tile, 2, rows, terms, mode, out, region),
            _ => for_rows!(multiply_tile, 1, rows, terms, mode, out, region),
        }
    }
}

/// # Safety
/// As [`multiply`].
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn multiply_tile<const ROWS: usize, const VECTORS: usize>(
    terms: &[GemmTerm<'_>],
    mode: AccumulateMode,
    out: *mut f32,
    region: OutputRegion,
) {
    let mut sums = MaybeUninit::uninit();
    // SAFETY: the caller's promise; the first term writes all accumulators.
    unsafe {
        let mut is_first = load_accumulators(mode, out, region, &mut sums);
        for term in terms {
            add_term::<ROWS, VECTORS>(term, is_first, &mut sums);
            is_first = false;
        }
        store_accumulators(sums.assume_init_ref(), mode, out, region);
    }
}

/// Adds one term. It is not inlined, so that the accumulators stay in registers along k: inside of the
/// loop over terms the compiler moves them to memory and back.
///
/// # Safety
/// As [`multiply`]; the accumulators are initialised unless `is_first`.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn add_term<const ROWS: usize, const VECTORS: usize>(
    term: &GemmTerm<'_>,
    is_first: bool,
    sums: &mut MaybeUninit<[[__m512; VECTORS]; ROWS]>,
) {
    // SAFETY: the caller's promise.
    let mut inside = unsafe { accumulators(is_first, sums) };
    let (row_stride, k_stride) = (term.left.row_stride, term.left.k_stride);
    // SAFETY: the caller's promise bounds each pointer; __m512i and __m512bh are both 64 plain
    // bytes.
    unsafe {
        let mut left = term.left.elements.as_ptr().add(term.left.start);
        let mut right = term.right.elements.as_ptr().add(term.right.start);
        for _ in 0..term.k_len {
            let mut row_of_right = [_mm512_setzero_si512(); VECTORS];
            for (vector, value) in row_of_right.iter_mut().enumerate() {
                *value = _mm512_loadu_si512(right.add(vector * LANES).cast());
            }
            for (row, sums) in inside.iter_mut().enumerate() {
                let pair = _mm512_set1_epi32(left.add(row * row_stride).read() as i32);
                for (sum, value) in sums.iter_mut().zip(row_of_right) {
                    *sum = _mm512_dpbf16_ps(
                        *sum,
                        std::mem::transmute::<__m512i, __m512bh>(pair),
                        std::mem::transmute::<__m512i, __m512bh>(value),
                    );
                }
            }
            left = left.wrapping_add(k_stride);
            right = right.wrapping_add(term.right.stride);
        }
    }
    sums.write(inside);
}
