//! f32 tiles on AVX-512. The right operand may be stored in bf16, which is widened to f32.

use std::arch::x86_64::*;
use std::mem::MaybeUninit;

use super::{accumulators, load_accumulators, store_accumulators};
use crate::train::backend::cpu::gemm::tile::operands::{
    AccumulateMode, GemmTerm, LANES, OutputRegion,
};

/// One tile of `rows` rows and `vectors` vectors of columns.
///
/// # Safety
/// The CPU has AVX-512F; rows, columns, k and strides stay inside of the slices, and the region is the
/// caller's.
#[target_feature(enable = "avx512f")]
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
#[target_feature(enable = "avx512f")]
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
            if term.right_is_bf16 {
                add_term_bf16::<ROWS, VECTORS>(term, is_first, &mut sums);
            } else {
                add_term_f32::<ROWS, VECTORS>(term, is_first, &mut sums);
            }
            is_first = false;
        }
        store_accumulators(sums.assume_init_ref(), mode, out, region);
    }
}

/// Adds one term of f32 operands. It is not inlined, so that the accumulators stay in registers along k.
///
/// # Safety
/// As [`multiply`].
#[inline(never)]
#[target_feature(enable = "avx512f")]
unsafe fn add_term_f32<const ROWS: usize, const VECTORS: usize>(
    term: &GemmTerm<'_>,
    is_first: bool,
    sums: &mut MaybeUninit<[[__m512; VECTORS]; ROWS]>,
) {
    // SAFETY: the caller's promise.
    let mut inside = unsafe { accumulators(is_first, sums) };
    let (row_stride, k_stride) = (term.left.row_stride, term.left.k_stride);
    // SAFETY: the caller's promise bounds each pointer.
    unsafe {
        let mut left: *const f32 = term.left.elements.as_ptr().add(term.left.start).cast();
        let mut right: *const f32 = term.right.elements.as_ptr().add(term.right.start).cast();
        for _ in 0..term.k_len {
            let mut row_of_right = [_mm512_setzero_ps(); VECTORS];
            for (vector, value) in row_of_right.iter_mut().enumerate() {
                *value = _mm512_loadu_ps(right.add(vector * LANES));
            }
            for (row, sums) in inside.iter_mut().enumerate() {
                let element = _mm512_set1_ps(*left.add(row * row_stride));
                for (sum, value) in sums.iter_mut().zip(row_of_right) {
                    *sum = _mm512_fmadd_ps(element, value, *sum);
                }
            }
            left = left.wrapping_add(k_stride);
            right = right.wrapping_add(term.right.stride);
        }
    }
    sums.write(inside);
}

/// Adds one term whose right operand holds bf16 pairs, in the order of [`add_term_f32`].
///
/// # Safety
/// As [`multiply`].
#[inline(never)]
#[target_feature(enable = "avx512f")]
unsafe fn add_term_bf16<const ROWS: usize, const VECTORS: usize>(
    term: &GemmTerm<'_>,
    is_first: bool,
    sums: &mut MaybeUninit<[[__m512; VECTORS]; ROWS]>,
) {
    // SAFETY: the caller's promise.
    let mut inside = unsafe { accumulators(is_first, sums) };
    let (row_stride, k_stride) = (term.left.row_stride, term.left.k_stride);
    let upper = _mm512_set1_epi32(0xffff_0000_u32 as i32);
    // SAFETY: the caller's promise bounds each pointer.
    unsafe {
        let mut left: *const f32 = term.left.elements.as_ptr().add(term.left.start).cast();
        let mut right = term.right.elements.as_ptr().add(term.right.start);
        for _ in 0..term.k_len {
            let mut low = [_mm512_setzero_ps(); VECTORS];
            let mut high = [_mm512_setzero_ps(); VECTORS];
            for vector in 0..VECTORS {
                let pairs = _mm512_loadu_si512(right.add(vector * LANES).cast());
                low[vector] = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(pairs));
                high[vector] = _mm512_castsi512_ps(_mm512_and_si512(pairs, upper));
            }
            for (row, sums) in inside.iter_mut().enumerate() {
                let first = _mm512_set1_ps(*left.add(row * row_stride));
                let second = _mm512_set1_ps(*left.add(row * row_stride + k_stride));
                for (vector, sum) in sums.iter_mut().enumerate() {
                    *sum = _mm512_fmadd_ps(first, low[vector], *sum);
                    *sum = _mm512_fmadd_ps(second, high[vector], *sum);
                }
            }
            left = left.wrapping_add(2 * k_stride);
            right = right.wrapping_add(term.right.stride);
        }
    }
    sums.write(inside);
}
