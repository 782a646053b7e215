//! Tiles on AVX2: sixteen registers, of which up to twelve hold accumulators.
//!
//! A tile is split into sub-tiles of up to four rows (six where it is narrow) and as many registers of
//! columns as fit. At least eight accumulators hide the latency of the multiply-add. The split changes no
//! sum.

use std::arch::x86_64::*;

use super::operands::{AccumulateMode, GemmTerm, LANES, OutputRegion};

/// Columns of a register.
const WIDTH: usize = 8;

/// One tile of `rows` rows and `vectors` vectors of columns, in f32.
///
/// # Safety
/// The CPU has AVX2 and FMA; rows, columns, k and strides stay inside of the slices, and the region is the
/// caller's.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn multiply(
    rows: usize,
    vectors: usize,
    terms: &[GemmTerm<'_>],
    mode: AccumulateMode,
    out: *mut f32,
    region: OutputRegion,
) {
    let registers = vectors * LANES / WIDTH;
    // The two values of a bf16 pair need registers of their own.
    let has_bf16 = terms.iter().any(|term| term.right_is_bf16);
    let mut row = 0;
    while row < rows {
        let height = match rows - row {
            left @ 5.. if registers <= 2 && !has_bf16 => left.min(6),
            5 => 3,
            left => left.min(4),
        };
        let at_once = match (height, has_bf16) {
            (5.., _) => 2,
            (1, _) => 6,
            (2, _) => 4,
            (3, _) | (_, false) => 3,
            _ => 2,
        };
        let mut register = 0;
        while register < registers {
            let sub_tile = SubTile { terms, row, register, mode, out, region };
            let wide = (registers - register).min(at_once);
            // SAFETY: the caller's promise, for a sub-tile.
            unsafe {
                match (height, wide) {
                    (1, 6) => multiply_sub_tile::<1, 6>(&sub_tile),
                    (1, 5) => multiply_sub_tile::<1, 5>(&sub_tile),
                    (1, 4) => multiply_sub_tile::<1, 4>(&sub_tile),
                    (1, 3) => multiply_sub_tile::<1, 3>(&sub_tile),
                    (1, 2) => multiply_sub_tile::<1, 2>(&sub_tile),
                    (1, _) => multiply_sub_tile::<1, 1>(&sub_tile),
                    (2, 4) => multiply_sub_tile::<2, 4>(&sub_tile),
                    (2, 3) => multiply_sub_tile::<2, 3>(&sub_tile),
                    (2, 2) => multiply_sub_tile::<2, 2>(&sub_tile),
                    (2, _) => multiply_sub_tile::<2, 1>(&sub_tile),
                    (3, 3) => multiply_sub_tile::<3, 3>(&sub_tile),
                    (3, 2) => multiply_sub_tile::<3, 2>(&sub_tile),
                    (3, _) => multiply_sub_tile::<3, 1>(&sub_tile),
                    (6, 2) => multiply_sub_tile::<6, 2>(&sub_tile),
                    (6, _) => multiply_sub_tile::<6, 1>(&sub_tile),
                    (5, 2) => multiply_sub_tile::<5, 2>(&sub_tile),
                    (5, _) => multiply_sub_tile::<5, 1>(&sub_tile),
                    (_, 3) => multiply_sub_tile::<4, 3>(&sub_tile),
                    (_, 2) => multiply_sub_tile::<4, 2>(&sub_tile),
                    _ => multiply_sub_tile::<4, 1>(&sub_tile),
                }
            }
            register += wide;
        }
        row += height;
    }
}

/// A part of a tile that fits the registers, from this row and register on.
struct SubTile<'a> {
    terms: &'a [GemmTerm<'a>],
    row: usize,
    register: usize,
    mode: AccumulateMode,
    out: *mut f32,
    region: OutputRegion,
}

/// # Safety
/// As [`multiply`], for `ROWS` rows and `COUNT` registers of columns of the sub-tile.
#[target_feature(enable = "avx2,fma")]
unsafe fn multiply_sub_tile<const ROWS: usize, const COUNT: usize>(sub_tile: &SubTile<'_>) {
    let mut sums = [[_mm256_setzero_ps(); COUNT]; ROWS];
    if sub_tile.mode == AccumulateMode::StartFromOutput {
        // SAFETY: the caller's promise.
        unsafe { load_accumulators(&mut sums, sub_tile) };
    }
    for term in sub_tile.terms {
        // SAFETY: the caller's promise.
        unsafe {
            if term.right_is_bf16 {
                add_term_bf16(term, sub_tile.row, sub_tile.register, &mut sums);
            } else {
                add_term_f32(term, sub_tile.row, sub_tile.register, &mut sums);
            }
        }
    }
    // SAFETY: the caller's promise.
    unsafe { store_accumulators(&sums, sub_tile) };
}

/// Adds one term. It is not inlined, so that the accumulators stay in registers along k.
///
/// # Safety
/// As [`multiply_sub_tile`].
#[inline(never)]
#[target_feature(enable = "avx2,fma")]
unsafe fn add_term_f32<const ROWS: usize, const COUNT: usize>(
    term: &GemmTerm<'_>,
    row: usize,
    register: usize,
    sums: &mut [[__m256; COUNT]; ROWS],
) {
    let mut inside = *sums;
    let (row_stride, k_stride) = (term.left.row_stride, term.left.k_stride);
    // SAFETY: the caller's promise bounds each pointer.
    unsafe {
        let start = term.left.start + row * row_stride;
        let mut left: *const f32 = term.left.elements.as_ptr().add(start).cast();
        let start = term.right.start + register * WIDTH;
        let mut right: *const f32 = term.right.elements.as_ptr().add(start).cast();
        for _ in 0..term.k_len {
            let mut row_of_right = [_mm256_setzero_ps(); COUNT];
            for (index, value) in row_of_right.iter_mut().enumerate() {
                *value = _mm256_loadu_ps(right.add(index * WIDTH));
            }
            for (row, sums) in inside.iter_mut().enumerate() {
                let element = _mm256_broadcast_ss(&*left.add(row * row_stride));
                for (sum, value) in sums.iter_mut().zip(row_of_right) {
                    *sum = _mm256_fmadd_ps(element, value, *sum);
                }
            }
            left = left.wrapping_add(k_stride);
            right = right.wrapping_add(term.right.stride);
        }
    }
    *sums = inside;
}

/// Adds one term whose right operand holds bf16 pairs, which a shift and a mask widen to f32. The sums are
/// those of [`add_term_f32`], from half as many bytes.
///
/// # Safety
/// As [`multiply_sub_tile`].
#[inline(never)]
#[target_feature(enable = "avx2,fma")]
unsafe fn add_term_bf16<const ROWS: usize, const COUNT: usize>(
    term: &GemmTerm<'_>,
    row: usize,
    register: usize,
    sums: &mut [[__m256; COUNT]; ROWS],
) {
    let mut inside = *sums;
    let (row_stride, k_stride) = (term.left.row_stride, term.left.k_stride);
    let upper = _mm256_set1_epi32(0xffff_0000_u32 as i32);
    // SAFETY: the caller's promise bounds each pointer.
    unsafe {
        let start = term.left.start + row * row_stride;
        let mut left: *const f32 = term.left.elements.as_ptr().add(start).cast();
        let start = term.right.start + register * WIDTH;
        let mut right = term.right.elements.as_ptr().add(start);
        for _ in 0..term.k_len {
            let mut low = [_mm256_setzero_ps(); COUNT];
            let mut high = [_mm256_setzero_ps(); COUNT];
            for index in 0..COUNT {
                let pairs = _mm256_loadu_si256(right.add(index * WIDTH).cast());
                low[index] = _mm256_castsi256_ps(_mm256_slli_epi32::<16>(pairs));
                high[index] = _mm256_castsi256_ps(_mm256_and_si256(pairs, upper));
            }
            for (row, sums) in inside.iter_mut().enumerate() {
                let first = _mm256_broadcast_ss(&*left.add(row * row_stride));
                let second = _mm256_broadcast_ss(&*left.add(row * row_stride + k_stride));
                for (index, sum) in sums.iter_mut().enumerate() {
                    *sum = _mm256_fmadd_ps(first, low[index], *sum);
                }
                for (index, sum) in sums.iter_mut().enumerate() {
                    *sum = _mm256_fmadd_ps(second, high[index], *sum);
                }
            }
            left = left.wrapping_add(2 * k_stride);
            right = right.wrapping_add(term.right.stride);
        }
    }
    *sums = inside;
}

/// Loads the accumulators from the output; the last registers may cover fewer columns.
///
/// # Safety
/// As [`multiply_sub_tile`].
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn load_accumulators<const ROWS: usize, const COUNT: usize>(
    sums: &mut [[__m256; COUNT]; ROWS],
    sub_tile: &SubTile<'_>,
) {
    for (row, sums) in sums.iter_mut().enumerate() {
        for (index, sum) in sums.iter_mut().enumerate() {
            let column = (sub_tile.register + index) * WIDTH;
            let columns = sub_tile.region.columns.saturating_sub(column).min(WIDTH);
            let mut values = [0.0; WIDTH];
            // SAFETY: no more than the columns of the region.
            unsafe {
                let at = (sub_tile.row + row) * sub_tile.region.stride + column;
                let from = sub_tile.out.wrapping_add(at);
                std::ptr::copy_nonoverlapping(from, values.as_mut_ptr(), columns);
                *sum = _mm256_loadu_ps(values.as_ptr());
            }
        }
    }
}

/// Stores the accumulators to the output; the last registers may cover fewer columns.
///
/// # Safety
/// As [`multiply_sub_tile`].
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn store_accumulators<const ROWS: usize, const COUNT: usize>(
    sums: &[[__m256; COUNT]; ROWS],
    sub_tile: &SubTile<'_>,
) {
    for (row, sums) in sums.iter().enumerate() {
        for (index, sum) in sums.iter().enumerate() {
            let column = (sub_tile.register + index) * WIDTH;
            let columns = sub_tile.region.columns.saturating_sub(column).min(WIDTH);
            let at = (sub_tile.row + row) * sub_tile.region.stride + column;
            // SAFETY: no more than the columns of the region.
            unsafe {
                if columns == WIDTH {
                    let into = sub_tile.out.add(at);
                    let value = match sub_tile.mode {
                        AccumulateMode::Overwrite | AccumulateMode::StartFromOutput => *sum,
                        AccumulateMode::AddScaled(factor) => {
                            let more = _mm256_mul_ps(_mm256_set1_ps(factor), *sum);
                            _mm256_add_ps(_mm256_loadu_ps(into), more)
                        }
                    };
                    _mm256_storeu_ps(into, value);
                    continue;
                }
                let mut values = [0.0; WIDTH];
                _mm256_storeu_ps(values.as_mut_ptr(), *sum);
                for (column, value) in values[..columns].iter().enumerate() {
                    let into = sub_tile.out.add(at + column);
                    match sub_tile.mode {
                        AccumulateMode::Overwrite | AccumulateMode::StartFromOutput => {
                            *into = *value
                        }
                        AccumulateMode::AddScaled(factor) => *into += factor * value,
                    }
                }
            }
        }
    }
}
