//! The innermost loops of every matrix product: one tile of the result at a time, held in registers.
//!
//! A tile has some rows and up to four [`UNIT`]s of columns, 24 registers of sums together. It is the
//! sum of [`Term`]s, each over `depth` words: an element of the left side (any strides) times a row of
//! the right side (contiguous, any stride between). Sums run in the order of the terms and their
//! depth, whatever the number of threads, so results repeat exactly.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;

use std::marker::PhantomData;

use crate::train::backend::cpu::isa::Isa;

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

    /// `length` elements from `start`, to be read.
    ///
    /// # Safety
    /// Nothing else writes them while the slice lives.
    ///
    /// # Panics
    /// When they reach beyond the end.
    pub unsafe fn written(&self, start: usize, length: usize) -> &[f32] {
        assert!(start + length <= self.length);
        // SAFETY: within the borrowed slice, and written by nobody, as the caller promises.
        unsafe { std::slice::from_raw_parts(self.first.add(start), length) }
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
                Isa::Bf16 => return avx512::bf16(rows, units, terms, store, out, place),
                Isa::Avx512 => return avx512::floats(rows, units, terms, store, out, place),
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
