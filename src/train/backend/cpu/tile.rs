//! The innermost loops of every matrix product: one tile of the result at a time, held in registers.
//!
//! A tile has some rows and up to four [`UNIT`]s of columns, 24 registers of sums together (with AVX2 six
//! rows by one unit after the other, twelve registers). It is the
//! sum of [`Term`]s, each over `depth` words: an element of the left side (any strides) times a row of
//! the right side (contiguous, any stride between). Sums run in the order of the terms and their
//! depth, whatever the number of threads, so results repeat exactly.

use std::marker::PhantomData;

use super::isa::Isa;

/// Columns of one AVX-512 register; widths of tiles are whole units.
pub const UNIT: usize = 16;

/// Most units of a tile.
pub const MOST_UNITS: usize = 4;

/// Most rows of a tile, whatever its width.
const MOST_ROWS: usize = 8;

/// Rows of a tile of so many units that fill the registers: 24 sums of 32 registers, and 12 of the 16
/// that AVX2 has.
pub fn tile_rows(isa: Isa, units: usize) -> usize {
    if units == MOST_UNITS || isa == Isa::Avx2 { 6 } else { MOST_ROWS }
}

/// Where the words of the left side lie: word (row, depth) at `start + row * row_stride + depth *
/// depth_stride`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Left<'a> {
    /// The words.
    pub words: &'a [u32],
    /// Index of word (0, 0).
    pub start: usize,
    /// Distance between rows.
    pub row_stride: usize,
    /// Distance along the depth.
    pub depth_stride: usize,
}

impl Left<'_> {
    /// The same from row `row` on.
    pub fn from_row(self, row: usize) -> Self {
        Self { start: self.start + row * self.row_stride, ..self }
    }
}

/// Where the rows of the right side lie: row `depth` at `start + depth * stride`, as long as the tile
/// is wide in whole units.
#[derive(Debug, Clone, Copy, Default)]
pub struct Right<'a> {
    /// The words.
    pub words: &'a [u32],
    /// Index of word (0, 0).
    pub start: usize,
    /// Distance along the depth.
    pub stride: usize,
}

/// One product of those whose sum a tile is.
#[derive(Debug, Clone, Copy, Default)]
pub struct Term<'a> {
    /// Left side.
    pub left: Left<'a>,
    /// Right side.
    pub right: Right<'a>,
    /// Words that it runs over.
    pub depth: usize,
}

/// What a product does with what stands in the result.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Store {
    /// Replaces it.
    Overwrite,
    /// Adds `factor` times the product to it.
    Add(f32),
}

/// A result that several tasks write to, each its own part.
#[derive(Clone, Copy)]
pub struct Target<'a> {
    first: *mut f32,
    length: usize,
    borrowed: PhantomData<&'a mut [f32]>,
}

// SAFETY: it is reached only through `unsafe` functions whose callers promise that no two tasks touch
// the same elements.
unsafe impl Send for Target<'_> {}
// SAFETY: as above.
unsafe impl Sync for Target<'_> {}

impl<'a> Target<'a> {
    /// All of `values`.
    pub fn new(values: &'a mut [f32]) -> Self {
        Self { first: values.as_mut_ptr(), length: values.len(), borrowed: PhantomData }
    }

    /// `length` elements from `start`.
    ///
    /// # Safety
    /// Nothing else reads or writes them while the slice lives.
    ///
    /// # Panics
    /// When they reach beyond the end.
    #[expect(
        clippy::mut_from_ref,
        reason = "each task has its own elements, as the caller promises"
    )]
    pub unsafe fn part(&self, start: usize, length: usize) -> &mut [f32] {
        assert!(start + length <= self.length);
        // SAFETY: within the borrowed slice, and the caller's alone.
        unsafe { std::slice::from_raw_parts_mut(self.first.add(start), length) }
    }
}

/// The part of a [`Target`] that a tile covers: its rows begin `stride` apart from `start` on and are
/// `columns` long.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    /// Index of the first element.
    pub start: usize,
    /// Distance between rows.
    pub stride: usize,
    /// Elements of a row.
    pub columns: usize,
}

/// Computes one tile of `rows` rows.
///
/// # Safety
/// Nothing else reads or writes the elements of `place` meanwhile.
///
/// # Panics
/// When the tile has more sums than there are registers, or anything reaches outside of its slice.
pub unsafe fn multiply(
    isa: Isa,
    rows: usize,
    terms: &[Term<'_>],
    store: Store,
    target: &Target<'_>,
    place: Place,
) {
    if rows == 0 || place.columns == 0 {
        return;
    }
    // The kernels read and write without bounds checks; these lines are what makes that sound.
    let units = place.columns.div_ceil(UNIT);
    assert!(units <= MOST_UNITS && rows <= tile_rows(isa, units));
    assert!(place.start + (rows - 1) * place.stride + place.columns <= target.length);
    for Term { left, right, depth } in terms {
        let Some(last) = depth.checked_sub(1) else { continue };
        let last_left = left.start + (rows - 1) * left.row_stride + last * left.depth_stride;
        let end_of_right = right.start + last * right.stride + units * UNIT;
        assert!(last_left < left.words.len() && end_of_right <= right.words.len());
    }
    #[cfg(target_arch = "x86_64")]
    {
        // SAFETY: within the target by the assertion.
        let out = unsafe { target.first.add(place.start) };
        // SAFETY: the level was found on this CPU, and the assertions bound every access.
        unsafe {
            match isa {
                Isa::Bf16 => return x86::bf16(rows, units, terms, store, out, place),
                Isa::Avx512 => return x86::avx512(rows, units, terms, store, out, place),
                Isa::Avx2 => return x86::avx2(rows, units, terms, store, out, place),
                Isa::Portable => {}
            }
        }
    }
    let mut tile = [0.0; MOST_ROWS * MOST_UNITS * UNIT];
    portable(rows, units, terms, &mut tile);
    for (row, from) in tile.chunks_exact(MOST_UNITS * UNIT).take(rows).enumerate() {
        // SAFETY: a row of the place, which is the caller's.
        let into = unsafe { target.part(place.start + row * place.stride, place.columns) };
        match store {
            Store::Overwrite => into.copy_from_slice(&from[..place.columns]),
            Store::Add(factor) => {
                for (into, from) in into.iter_mut().zip(from) {
                    *into += factor * from;
                }
            }
        }
    }
}

/// A tile in memory; a row begins every [`MOST_UNITS`] units.
type Tile = [f32; MOST_ROWS * MOST_UNITS * UNIT];

/// Plain Rust for every other CPU.
fn portable(rows: usize, units: usize, terms: &[Term<'_>], tile: &mut Tile) {
    for Term { left, right, depth } in terms {
        for k in 0..*depth {
            let right = &right.words[right.start + k * right.stride..][..units * UNIT];
            for row in 0..rows {
                let word = left.words[left.start + row * left.row_stride + k * left.depth_stride];
                let element = f32::from_bits(word);
                let sums = &mut tile[row * MOST_UNITS * UNIT..][..units * UNIT];
                for (sum, right) in sums.iter_mut().zip(right) {
                    *sum += element * f32::from_bits(*right);
                }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

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
    pub(super) unsafe fn avx512(
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
                4 => for_rows!(avx512_tile, 4, rows, terms, store, out, place),
                3 => for_rows!(avx512_tile, 3, rows, terms, store, out, place),
                2 => for_rows!(avx512_tile, 2, rows, terms, store, out, place),
                _ => for_rows!(avx512_tile, 1, rows, terms, store, out, place),
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
        let mut sums = [[_mm512_setzero_ps(); UNITS]; ROWS];
        // SAFETY: the caller's promise.
        unsafe {
            for term in terms {
                bf16_term(term, &mut sums);
            }
            keep(&sums, store, out, place);
        }
    }

    /// Adds one term. A function of its own, so that the sums stay in registers along the depth: with
    /// the loop over terms around it the compiler moves them to memory and back.
    ///
    /// # Safety
    /// As [`bf16`].
    #[inline(never)]
    #[target_feature(enable = "avx512f,avx512bf16")]
    unsafe fn bf16_term<const ROWS: usize, const UNITS: usize>(
        term: &Term<'_>,
        sums: &mut [[__m512; UNITS]; ROWS],
    ) {
        let mut inside = *sums;
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
        *sums = inside;
    }

    /// # Safety
    /// As [`avx512`].
    #[target_feature(enable = "avx512f")]
    unsafe fn avx512_tile<const ROWS: usize, const UNITS: usize>(
        terms: &[Term<'_>],
        store: Store,
        out: *mut f32,
        place: Place,
    ) {
        let mut sums = [[_mm512_setzero_ps(); UNITS]; ROWS];
        // SAFETY: the caller's promise.
        unsafe {
            for term in terms {
                avx512_term(term, &mut sums);
            }
            keep(&sums, store, out, place);
        }
    }

    /// Adds one term, as [`bf16_term`].
    ///
    /// # Safety
    /// As [`avx512`].
    #[inline(never)]
    #[target_feature(enable = "avx512f")]
    unsafe fn avx512_term<const ROWS: usize, const UNITS: usize>(
        term: &Term<'_>,
        sums: &mut [[__m512; UNITS]; ROWS],
    ) {
        let mut inside = *sums;
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
        *sums = inside;
    }

    /// Moves sums into their place; the last unit may stand for fewer columns.
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
        let last = place.columns - (UNITS - 1) * UNIT;
        let last_mask = (u32::MAX >> (32 - last)) as __mmask16;
        for (row, sums) in sums.iter().enumerate() {
            for (unit, sum) in sums.iter().enumerate() {
                let mask = if unit + 1 == UNITS { last_mask } else { __mmask16::MAX };
                // SAFETY: the mask ends with the columns of the place.
                unsafe {
                    let into = out.add(row * place.stride + unit * UNIT);
                    let value = match store {
                        Store::Overwrite => *sum,
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

    /// One unit after the other.
    ///
    /// # Safety
    /// The CPU has AVX2 and FMA; rows, units, depths and strides stay inside of the slices, and the
    /// place is the caller's.
    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn avx2(
        rows: usize,
        units: usize,
        terms: &[Term<'_>],
        store: Store,
        out: *mut f32,
        place: Place,
    ) {
        for unit in 0..units {
            let first = unit * UNIT;
            let columns = (place.columns - first).min(UNIT);
            // SAFETY: the caller's promise, for the columns of a unit.
            unsafe {
                let out = out.add(first);
                let place = Place { columns, ..place };
                match rows {
                    6 => avx2_tile::<6>(first, terms, store, out, place),
                    5 => avx2_tile::<5>(first, terms, store, out, place),
                    4 => avx2_tile::<4>(first, terms, store, out, place),
                    3 => avx2_tile::<3>(first, terms, store, out, place),
                    2 => avx2_tile::<2>(first, terms, store, out, place),
                    _ => avx2_tile::<1>(first, terms, store, out, place),
                }
            }
        }
    }

    /// # Safety
    /// As [`avx2`], for the columns from `first` on, one unit at most, which `out` points to.
    #[target_feature(enable = "avx2,fma")]
    unsafe fn avx2_tile<const ROWS: usize>(
        first: usize,
        terms: &[Term<'_>],
        store: Store,
        out: *mut f32,
        place: Place,
    ) {
        let mut sums = [[_mm256_setzero_ps(); 2]; ROWS];
        for term in terms {
            // SAFETY: the caller's promise.
            unsafe { avx2_term(first, term, &mut sums) };
        }
        for (row, sums) in sums.iter().enumerate() {
            let mut values = [0.0f32; UNIT];
            // SAFETY: `values` has room for both halves, and the row's columns are the caller's.
            let into = unsafe {
                _mm256_storeu_ps(values.as_mut_ptr(), sums[0]);
                _mm256_storeu_ps(values.as_mut_ptr().add(8), sums[1]);
                std::slice::from_raw_parts_mut(out.add(row * place.stride), place.columns)
            };
            // A whole unit's length is known to the compiler, which makes two registers of it.
            match <&mut [f32; UNIT]>::try_from(&mut *into) {
                Ok(into) => keep_floats(into, &values, store),
                Err(_partly) => keep_floats(into, &values, store),
            }
        }
    }

    /// Moves sums into their place.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn keep_floats(into: &mut [f32], sums: &[f32; UNIT], store: Store) {
        match store {
            Store::Overwrite => into.copy_from_slice(&sums[..into.len()]),
            Store::Add(factor) => {
                for (into, sum) in into.iter_mut().zip(sums) {
                    *into = factor.mul_add(*sum, *into);
                }
            }
        }
    }

    /// Adds one term, as [`bf16_term`]: twelve sums hide the latency of the multiply-add.
    ///
    /// # Safety
    /// As [`avx2_tile`].
    #[inline(never)]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn avx2_term<const ROWS: usize>(
        first: usize,
        term: &Term<'_>,
        sums: &mut [[__m256; 2]; ROWS],
    ) {
        let mut inside = *sums;
        let (row_stride, depth_stride) = (term.left.row_stride, term.left.depth_stride);
        // SAFETY: the caller's promise bounds each pointer.
        unsafe {
            let mut left: *const f32 = term.left.words.as_ptr().add(term.left.start).cast();
            let start = term.right.start + first;
            let mut right: *const f32 = term.right.words.as_ptr().add(start).cast();
            for _ in 0..term.depth {
                let low = _mm256_loadu_ps(right);
                let high = _mm256_loadu_ps(right.add(8));
                for (row, sums) in inside.iter_mut().enumerate() {
                    let element = _mm256_set1_ps(*left.add(row * row_stride));
                    sums[0] = _mm256_fmadd_ps(element, low, sums[0]);
                    sums[1] = _mm256_fmadd_ps(element, high, sums[1]);
                }
                left = left.wrapping_add(depth_stride);
                right = right.wrapping_add(term.right.stride);
            }
        }
        *sums = inside;
    }
}
