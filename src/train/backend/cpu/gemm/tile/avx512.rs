//! Tiles on AVX-512: thirty-two registers, of which 24 hold sums. In bfloat16 where the CPU multiplies
//! that, in floats elsewhere.

use std::arch::x86_64::*;
use std::mem::MaybeUninit;

use super::{Place, Store, Term, UNIT};

/// Calls a kernel compiled for the number of rows; a macro because both are constants of its type.
macro_rules! for_rows {
    ($kernel:ident, $units:literal, $rows:expr, $($argument:expr),*) => {
        match $rows {
            8 => $kernel::<8, $units>($($argument),*),
            7 => $kernel::<7, $units>($($argument),*),
            6 => $kernel::<6, $units>($($argument),*),
            5 => $kernel::<5, $units>($($argument),*),
            4 => $kernel::<4, $units>($($argument),*),
            3 => $kernel::<3, $units>($($argument),*),
            2 => $kernel::<2, $units>($($argument),*),
            _ => $kernel::<1, $units>($($argument),*),
        }
    };
}

/// # Safety
/// The CPU has AVX-512 BF16; rows, columns, depths and strides stay inside of the slices, and the
/// place is the caller's.
#[target_feature(enable = "avx512f,avx512bf16")]
pub(super) unsafe fn bf16(
    rows: usize,
    units: usize,
    terms: &[Term<'_>],
    store: Store,
    out: *mut f32,
    place: Place,
) {
    // SAFETY: the caller's promise, passed on.
    unsafe {
        match units {
            4 => for_rows!(bf16_tile, 4, rows, terms, store, out, place),
            3 => for_rows!(bf16_tile, 3, rows, terms, store, out, place),
            2 => for_rows!(bf16_tile, 2, rows, terms, store, out, place),
            _ => for_rows!(bf16_tile, 1, rows, terms, store, out, place),
        }
    }
}

/// # Safety
/// As [`bf16`], with AVX-512F alone.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn floats(
    rows: usize,
    units: usize,
    terms: &[Term<'_>],
    store: Store,
    out: *mut f32,
    place: Place,
) {
    // SAFETY: the caller's promise, passed on.
    unsafe {
        match units {
            4 => for_rows!(float_tile, 4, rows, terms, store, out, place),
            3 => for_rows!(float_tile, 3, rows, terms, store, out, place),
            2 => for_rows!(float_tile, 2, rows, terms, store, out, place),
            _ => for_rows!(float_tile, 1, rows, terms, store, out, place),
        }
    }
}

/// # Safety
/// As [`bf16`].
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn bf16_tile<const ROWS: usize, const UNITS: usize>(
    terms: &[Term<'_>],
    store: Store,
    out: *mut f32,
    place: Place,
) {
    let mut sums = MaybeUninit::uninit();
    // SAFETY: the caller's promise; the first term writes all sums.
    unsafe {
        let mut begins = begin(store, out, place, &mut sums);
        for term in terms {
            bf16_term::<ROWS, UNITS>(term, begins, &mut sums);
            begins = false;
        }
        keep(sums.assume_init_ref(), store, out, place);
    }
}

/// Begins sums with what is in their place if they go on from it. Otherwise the first term begins
/// with zeros, which this then says.
///
/// # Safety
/// As [`keep`].
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn begin<const ROWS: usize, const UNITS: usize>(
    store: Store,
    out: *const f32,
    place: Place,
    sums: &mut MaybeUninit<[[__m512; UNITS]; ROWS]>,
) -> bool {
    if store != Store::Continue {
        return true;
    }
    let mut there = [[_mm512_setzero_ps(); UNITS]; ROWS];
    for (row, sums) in there.iter_mut().enumerate() {
        for (unit, sum) in sums.iter_mut().enumerate() {
            let mask = mask::<UNITS>(unit, place);
            // SAFETY: the mask ends with the columns of the place.
            unsafe {
                *sum = _mm512_maskz_loadu_ps(mask, out.add(row * place.stride + unit * UNIT));
            }
        }
    }
    sums.write(there);
    false
}

/// What a term adds to. Zeros to begin with are made in registers: memory filled with them takes a
/// twentieth of a product's time.
///
/// # Safety
/// The CPU has AVX-512F; without `begins` the sums are there.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn so_far<const ROWS: usize, const UNITS: usize>(
    begins: bool,
    sums: &MaybeUninit<[[__m512; UNITS]; ROWS]>,
) -> [[__m512; UNITS]; ROWS] {
    if begins {
        return [[_mm512_setzero_ps(); UNITS]; ROWS];
    }
    // SAFETY: the caller's promise.
    unsafe { sums.assume_init_read() }
}

/// Which columns of a unit are of the place: the last unit may stand for fewer.
#[inline]
fn mask<const UNITS: usize>(unit: usize, place: Place) -> __mmask16 {
    if unit + 1 < UNITS {
        return __mmask16::MAX;
    }
    let last = place.columns - (UNITS - 1) * UNIT;
    (u32::MAX >> (32 - last)) as __mmask16
}

/// Adds one term. A function of its own, so that the sums stay in registers along the depth: with
/// the loop over terms around it the compiler moves them to memory and back.
///
/// # Safety
/// As [`bf16`]; the sums are there, unless the term begins them.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn bf16_term<const ROWS: usize, const UNITS: usize>(
    term: &Term<'_>,
    begins: bool,
    sums: &mut MaybeUninit<[[__m512; UNITS]; ROWS]>,
) {
    // SAFETY: the caller's promise.
    let mut inside = unsafe { so_far(begins, sums) };
    let (row_stride, depth_stride) = (term.left.row_stride, term.left.depth_stride);
    // SAFETY: the caller's promise bounds each pointer; __m512i and __m512bh are both 64 plain
    // bytes.
    unsafe {
        let mut left = term.left.words.as_ptr().add(term.left.start);
        let mut right = term.right.words.as_ptr().add(term.right.start);
        for _ in 0..term.depth {
            let mut row_of_right = [_mm512_setzero_si512(); UNITS];
            for (unit, value) in row_of_right.iter_mut().enumerate() {
                *value = _mm512_loadu_si512(right.add(unit * UNIT).cast());
            }
            for (row, sums) in inside.iter_mut().enumerate() {
                let word = _mm512_set1_epi32(left.add(row * row_stride).read() as i32);
                for (sum, value) in sums.iter_mut().zip(row_of_right) {
                    *sum = _mm512_dpbf16_ps(
                        *sum,
                        std::mem::transmute::<__m512i, __m512bh>(word),
                        std::mem::transmute::<__m512i, __m512bh>(value),
                    );
                }
            }
            left = left.wrapping_add(depth_stride);
            right = right.wrapping_add(term.right.stride);
        }
    }
    sums.write(inside);
}

/// # Safety
/// As [`floats`].
#[target_feature(enable = "avx512f")]
unsafe fn float_tile<const ROWS: usize, const UNITS: usize>(
    terms: &[Term<'_>],
    store: Store,
    out: *mut f32,
    place: Place,
) {
    let mut sums = MaybeUninit::uninit();
    // SAFETY: the caller's promise; the first term writes all sums.
    unsafe {
        let mut begins = begin(store, out, place, &mut sums);
        for term in terms {
            if term.halves {
                halves_term::<ROWS, UNITS>(term, begins, &mut sums);
            } else {
                float_term::<ROWS, UNITS>(term, begins, &mut sums);
            }
            begins = false;
        }
        keep(sums.assume_init_ref(), store, out, place);
    }
}

/// Adds one term, as [`bf16_term`].
///
/// # Safety
/// As [`floats`].
#[inline(never)]
#[target_feature(enable = "avx512f")]
unsafe fn float_term<const ROWS: usize, const UNITS: usize>(
    term: &Term<'_>,
    begins: bool,
    sums: &mut MaybeUninit<[[__m512; UNITS]; ROWS]>,
) {
    // SAFETY: the caller's promise.
    let mut inside = unsafe { so_far(begins, sums) };
    let (row_stride, depth_stride) = (term.left.row_stride, term.left.depth_stride);
    // SAFETY: the caller's promise bounds each pointer.
    unsafe {
        let mut left: *const f32 = term.left.words.as_ptr().add(term.left.start).cast();
        let mut right: *const f32 = term.right.words.as_ptr().add(term.right.start).cast();
        for _ in 0..term.depth {
            let mut row_of_right = [_mm512_setzero_ps(); UNITS];
            for (unit, value) in row_of_right.iter_mut().enumerate() {
                *value = _mm512_loadu_ps(right.add(unit * UNIT));
            }
            for (row, sums) in inside.iter_mut().enumerate() {
                let element = _mm512_set1_ps(*left.add(row * row_stride));
                for (sum, value) in sums.iter_mut().zip(row_of_right) {
                    *sum = _mm512_fmadd_ps(element, value, *sum);
                }
            }
            left = left.wrapping_add(depth_stride);
            right = right.wrapping_add(term.right.stride);
        }
    }
    sums.write(inside);
}

/// Adds one term whose right side is pairs of bfloat16 numbers, in the order of [`float_term`].
///
/// # Safety
/// As [`floats`].
#[inline(never)]
#[target_feature(enable = "avx512f")]
unsafe fn halves_term<const ROWS: usize, const UNITS: usize>(
    term: &Term<'_>,
    begins: bool,
    sums: &mut MaybeUninit<[[__m512; UNITS]; ROWS]>,
) {
    // SAFETY: the caller's promise.
    let mut inside = unsafe { so_far(begins, sums) };
    let (row_stride, depth_stride) = (term.left.row_stride, term.left.depth_stride);
    let upper = _mm512_set1_epi32(0xffff_0000_u32 as i32);
    // SAFETY: the caller's promise bounds each pointer.
    unsafe {
        let mut left: *const f32 = term.left.words.as_ptr().add(term.left.start).cast();
        let mut right = term.right.words.as_ptr().add(term.right.start);
        for _ in 0..term.depth {
            let mut low = [_mm512_setzero_ps(); UNITS];
            let mut high = [_mm512_setzero_ps(); UNITS];
            for unit in 0..UNITS {
                let words = _mm512_loadu_si512(right.add(unit * UNIT).cast());
                low[unit] = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(words));
                high[unit] = _mm512_castsi512_ps(_mm512_and_si512(words, upper));
            }
            for (row, sums) in inside.iter_mut().enumerate() {
                let first = _mm512_set1_ps(*left.add(row * row_stride));
                let second = _mm512_set1_ps(*left.add(row * row_stride + depth_stride));
                for (unit, sum) in sums.iter_mut().enumerate() {
                    *sum = _mm512_fmadd_ps(first, low[unit], *sum);
                    *sum = _mm512_fmadd_ps(second, high[unit], *sum);
                }
            }
            left = left.wrapping_add(2 * depth_stride);
            right = right.wrapping_add(term.right.stride);
        }
    }
    sums.write(inside);
}

/// Moves sums into their place.
///
/// # Safety
/// The CPU has AVX-512F, and the place is the caller's.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn keep<const ROWS: usize, const UNITS: usize>(
    sums: &[[__m512; UNITS]; ROWS],
    store: Store,
    out: *mut f32,
    place: Place,
) {
    for (row, sums) in sums.iter().enumerate() {
        for (unit, sum) in sums.iter().enumerate() {
            let mask = mask::<UNITS>(unit, place);
            // SAFETY: the mask ends with the columns of the place.
            unsafe {
                let into = out.add(row * place.stride + unit * UNIT);
                let value = match store {
                    Store::Overwrite | Store::Continue => *sum,
                    Store::Add(factor) => {
                        let there = _mm512_maskz_loadu_ps(mask, into);
                        _mm512_fmadd_ps(_mm512_set1_ps(factor), *sum, there)
                    }
                };
                _mm512_mask_storeu_ps(into, mask, value);
            }
        }
    }
}
