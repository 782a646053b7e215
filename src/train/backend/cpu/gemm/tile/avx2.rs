//! Tiles on AVX2: sixteen registers, of which up to twelve hold sums.
//!
//! A tile is cut into parts of up to four rows (six where it is narrow) and as many registers of columns
//! as stay within these; eight sums at least hide the latency of the multiply-add. How a tile is cut
//! changes no sum.

use std::arch::x86_64::*;

use super::{Place, Store, Term, UNIT};

/// Columns of a register.
const WIDTH: usize = 8;

/// One tile of `rows` rows and `units` units of columns.
///
/// # Safety
/// The CPU has AVX2 and FMA; rows, columns, depths and strides stay inside of the slices, and the
/// place is the caller's.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn multiply(
    rows: usize,
    units: usize,
    terms: &[Term<'_>],
    store: Store,
    out: *mut f32,
    place: Place,
) {
    let registers = units * UNIT / WIDTH;
    // The numbers of a pair need registers of their own.
    let is_halves = terms.iter().any(|term| term.halves);
    let mut row = 0;
    while row < rows {
        let height = match rows - row {
            left @ 5.. if registers <= 2 && !is_halves => left.min(6),
            5 => 3,
            left => left.min(4),
        };
        let at_once = match (height, is_halves) {
            (5.., _) => 2,
            (1, _) => 6,
            (2, _) => 4,
            (3, _) | (_, false) => 3,
            _ => 2,
        };
        let mut register = 0;
        while register < registers {
            let part = Part { terms, row, register, store, out, place };
            let wide = (registers - register).min(at_once);
            // SAFETY: the caller's promise, for a part of the tile.
            unsafe {
                match (height, wide) {
                    (1, 6) => multiply_part::<1, 6>(&part),
                    (1, 5) => multiply_part::<1, 5>(&part),
                    (1, 4) => multiply_part::<1, 4>(&part),
                    (1, 3) => multiply_part::<1, 3>(&part),
                    (1, 2) => multiply_part::<1, 2>(&part),
                    (1, _) => multiply_part::<1, 1>(&part),
                    (2, 4) => multiply_part::<2, 4>(&part),
                    (2, 3) => multiply_part::<2, 3>(&part),
                    (2, 2) => multiply_part::<2, 2>(&part),
                    (2, _) => multiply_part::<2, 1>(&part),
                    (3, 3) => multiply_part::<3, 3>(&part),
                    (3, 2) => multiply_part::<3, 2>(&part),
                    (3, _) => multiply_part::<3, 1>(&part),
                    (6, 2) => multiply_part::<6, 2>(&part),
                    (6, _) => multiply_part::<6, 1>(&part),
                    (5, 2) => multiply_part::<5, 2>(&part),
                    (5, _) => multiply_part::<5, 1>(&part),
                    (_, 3) => multiply_part::<4, 3>(&part),
                    (_, 2) => multiply_part::<4, 2>(&part),
                    _ => multiply_part::<4, 1>(&part),
                }
            }
            register += wide;
        }
        row += height;
    }
}

/// A part of a tile: its first row and register.
struct Part<'a> {
    terms: &'a [Term<'a>],
    row: usize,
    register: usize,
    store: Store,
    out: *mut f32,
    place: Place,
}

/// # Safety
/// As [`multiply`], for `ROWS` rows and `COUNT` registers of columns from those of the part on.
#[target_feature(enable = "avx2,fma")]
unsafe fn multiply_part<const ROWS: usize, const COUNT: usize>(part: &Part<'_>) {
    let mut sums = [[_mm256_setzero_ps(); COUNT]; ROWS];
    if part.store == Store::Continue {
        // SAFETY: the caller's promise.
        unsafe { begin(&mut sums, part) };
    }
    for term in part.terms {
        // SAFETY: the caller's promise.
        unsafe {
            if term.halves {
                add_halves(term, part.row, part.register, &mut sums);
            } else {
                add_floats(term, part.row, part.register, &mut sums);
            }
        }
    }
    // SAFETY: the caller's promise.
    unsafe { keep(&sums, part) };
}

/// Adds one term. A function of its own, so that the sums stay in registers along the depth.
///
/// # Safety
/// As [`multiply_part`].
#[inline(never)]
#[target_feature(enable = "avx2,fma")]
unsafe fn add_floats<const ROWS: usize, const COUNT: usize>(
    term: &Term<'_>,
    row: usize,
    register: usize,
    sums: &mut [[__m256; COUNT]; ROWS],
) {
    let mut inside = *sums;
    let (row_stride, depth_stride) = (term.left.row_stride, term.left.depth_stride);
    // SAFETY: the caller's promise bounds each pointer.
    unsafe {
        let start = term.left.start + row * row_stride;
        let mut left: *const f32 = term.left.words.as_ptr().add(start).cast();
        let start = term.right.start + register * WIDTH;
        let mut right: *const f32 = term.right.words.as_ptr().add(start).cast();
        for _ in 0..term.depth {
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
            left = left.wrapping_add(depth_stride);
            right = right.wrapping_add(term.right.stride);
        }
    }
    *sums = inside;
}

/// Adds one term whose right side is pairs of bfloat16 numbers, which a shift or a mask turns into
/// floats: the sums of [`add_floats`], of half as many bytes.
///
/// # Safety
/// As [`multiply_part`].
#[inline(never)]
#[target_feature(enable = "avx2,fma")]
unsafe fn add_halves<const ROWS: usize, const COUNT: usize>(
    term: &Term<'_>,
    row: usize,
    register: usize,
    sums: &mut [[__m256; COUNT]; ROWS],
) {
    let mut inside = *sums;
    let (row_stride, depth_stride) = (term.left.row_stride, term.left.depth_stride);
    let upper = _mm256_set1_epi32(0xffff_0000_u32 as i32);
    // SAFETY: the caller's promise bounds each pointer.
    unsafe {
        let start = term.left.start + row * row_stride;
        let mut left: *const f32 = term.left.words.as_ptr().add(start).cast();
        let start = term.right.start + register * WIDTH;
        let mut right = term.right.words.as_ptr().add(start);
        for _ in 0..term.depth {
            let mut low = [_mm256_setzero_ps(); COUNT];
            let mut high = [_mm256_setzero_ps(); COUNT];
            for index in 0..COUNT {
                let words = _mm256_loadu_si256(right.add(index * WIDTH).cast());
                low[index] = _mm256_castsi256_ps(_mm256_slli_epi32::<16>(words));
                high[index] = _mm256_castsi256_ps(_mm256_and_si256(words, upper));
            }
            for (row, sums) in inside.iter_mut().enumerate() {
                let first = _mm256_broadcast_ss(&*left.add(row * row_stride));
                let second = _mm256_broadcast_ss(&*left.add(row * row_stride + depth_stride));
                for (index, sum) in sums.iter_mut().enumerate() {
                    *sum = _mm256_fmadd_ps(first, low[index], *sum);
                }
                for (index, sum) in sums.iter_mut().enumerate() {
                    *sum = _mm256_fmadd_ps(second, high[index], *sum);
                }
            }
            left = left.wrapping_add(2 * depth_stride);
            right = right.wrapping_add(term.right.stride);
        }
    }
    *sums = inside;
}

/// Begins sums with what is in their place; the last registers may stand for fewer columns.
///
/// # Safety
/// As [`multiply_part`].
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn begin<const ROWS: usize, const COUNT: usize>(
    sums: &mut [[__m256; COUNT]; ROWS],
    part: &Part<'_>,
) {
    for (row, sums) in sums.iter_mut().enumerate() {
        for (index, sum) in sums.iter_mut().enumerate() {
            let column = (part.register + index) * WIDTH;
            let columns = part.place.columns.saturating_sub(column).min(WIDTH);
            let mut values = [0.0; WIDTH];
            // SAFETY: no more than the columns of the place.
            unsafe {
                let at = (part.row + row) * part.place.stride + column;
                let from = part.out.wrapping_add(at);
                std::ptr::copy_nonoverlapping(from, values.as_mut_ptr(), columns);
                *sum = _mm256_loadu_ps(values.as_ptr());
            }
        }
    }
}

/// Moves sums into their place; the last registers may stand for fewer columns.
///
/// # Safety
/// As [`multiply_part`].
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn keep<const ROWS: usize, const COUNT: usize>(
    sums: &[[__m256; COUNT]; ROWS],
    part: &Part<'_>,
) {
    for (row, sums) in sums.iter().enumerate() {
        for (index, sum) in sums.iter().enumerate() {
            let column = (part.register + index) * WIDTH;
            let columns = part.place.columns.saturating_sub(column).min(WIDTH);
            let at = (part.row + row) * part.place.stride + column;
            // SAFETY: no more than the columns of the place.
            unsafe {
                if columns == WIDTH {
                    let into = part.out.add(at);
                    let value = match part.store {
                        Store::Overwrite | Store::Continue => *sum,
                        Store::Add(factor) => {
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
                    let into = part.out.add(at + column);
                    match part.store {
                        Store::Overwrite | Store::Continue => *into = *value,
                        Store::Add(factor) => *into += factor * value,
                    }
                }
            }
        }
    }
}
