//! The innermost loops of every matrix product: one tile of the result at a time, held in registers.
//!
//! A tile has some rows and up to four [`UNIT`]s of columns, 24 registers of sums together. It is the
//! sum of [`Term`]s, each over `depth` words: an element of the left side (any strides) times a row of
//! the right side (contiguous, any stride between). Sums run in the order of the terms and their
//! depth, whatever the number of threads, so results repeat exactly.

#[cfg(target_arch = "x86_64")]
mod avx2;

use std::marker::PhantomData;

use super::isa::Isa;

/// Columns of one AVX-512 register; widths of tiles are whole units.
pub const UNIT: usize = 16;

/// Most units of a tile.
pub const MOST_UNITS: usize = 4;

/// Most rows of a tile, whatever its width.
const MOST_ROWS: usize = 8;

/// Rows of a tile of so many units that fill the registers: 24 sums of 32 registers, and with AVX2 12 of
/// 16 for the tiles of one unit that most of its products are made of.
pub fn tile_rows(isa: Isa, units: usize) -> usize {
    let fills = units == MOST_UNITS || (isa == Isa::Avx2 && units == 1);
    if fills { 6 } else { MOST_ROWS }
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
    /// Words of the right side that it runs over.
    pub depth: usize,
    /// The right side's words hold two bfloat16 numbers each, and the left side's one float, so that
    /// twice as many of these belong to it: what a bfloat16 matrix is multiplied with exactly.
    pub halves: bool,
}

/// What a product does with what stands in the result.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Store {
    /// Replaces it.
    Overwrite,
    /// Goes on from it: its sums begin there, and come to what they would in one go.
    Continue,
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
/// Without a term, when the tile has more sums than there are registers, or when anything reaches outside
/// of its slice.
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
    assert!(!terms.is_empty() && units <= MOST_UNITS && rows <= tile_rows(isa, units));
    assert!(place.start + (rows - 1) * place.stride + place.columns <= target.length);
    for Term { left, right, depth, halves } in terms {
        let Some(last) = depth.checked_sub(1) else { continue };
        let last_of_row = if *halves { 2 * last + 1 } else { last };
        let last_left = left.start + (rows - 1) * left.row_stride + last_of_row * left.depth_stride;
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
                Isa::Avx2 => return avx2::multiply(rows, units, terms, store, out, place),
                Isa::Portable => {}
            }
        }
    }
    let mut tile = [0.0; MOST_ROWS * MOST_UNITS * UNIT];
    if store == Store::Continue {
        for (row, into) in tile.chunks_exact_mut(MOST_UNITS * UNIT).take(rows).enumerate() {
            // SAFETY: a row of the place, which is the caller's.
            let from = unsafe { target.part(place.start + row * place.stride, place.columns) };
            into[..place.columns].copy_from_slice(from);
        }
    }
    portable(rows, units, terms, &mut tile);
    for (row, from) in tile.chunks_exact(MOST_UNITS * UNIT).take(rows).enumerate() {
        // SAFETY: a row of the place, which is the caller's.
        let into = unsafe { target.part(place.start + row * place.stride, place.columns) };
        match store {
            Store::Overwrite | Store::Continue => into.copy_from_slice(&from[..place.columns]),
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
    for Term { left, right, depth, halves } in terms {
        for k in 0..*depth {
            let right = &right.words[right.start + k * right.stride..][..units * UNIT];
            for row in 0..rows {
                let word = |number: usize| {
                    let at = left.start + row * left.row_stride + number * left.depth_stride;
                    f32::from_bits(left.words[at])
                };
                let sums = &mut tile[row * MOST_UNITS * UNIT..][..units * UNIT];
                if !halves {
                    let element = word(k);
                    for (sum, right) in sums.iter_mut().zip(right) {
                        *sum += element * f32::from_bits(*right);
                    }
                    continue;
                }
                let (first, second) = (word(2 * k), word(2 * k + 1));
                for (sum, right) in sums.iter_mut().zip(right) {
                    *sum += first * f32::from_bits(right << 16);
                    *sum += second * f32::from_bits(right & 0xffff_0000);
                }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
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
    /// As [`avx512`].
    #[target_feature(enable = "avx512f")]
    unsafe fn avx512_tile<const ROWS: usize, const UNITS: usize>(
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
                    avx512_halves_term::<ROWS, UNITS>(term, begins, &mut sums);
                } else {
                    avx512_term::<ROWS, UNITS>(term, begins, &mut sums);
                }
                begins = false;
            }
            keep(sums.assume_init_ref(), store, out, place);
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

    /// Adds one term whose right side is pairs of bfloat16 numbers, in the order of [`avx512_term`].
    ///
    /// # Safety
    /// As [`avx512`].
    #[inline(never)]
    #[target_feature(enable = "avx512f")]
    unsafe fn avx512_halves_term<const ROWS: usize, const UNITS: usize>(
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
}
