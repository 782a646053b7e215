//! The micro-kernels of every matrix product: each computes one tile of the output in registers.
//!
//! A tile has a few rows and up to four vectors of [`LANES`] columns; its accumulators take 24 registers.
//! It is a batch-reduce product: the sum of [`GemmTerm`]s, each over `k_len` packed elements, of an element
//! of the left operand (any strides) times a row of the right operand (contiguous, any row stride). Sums
//! run in the order of the terms and along k, whatever the number of threads, so results repeat exactly.
//!
//! bf16 tiles are multiplied in `avx512/bf16.rs`, f32 tiles in `avx512/fp32.rs` and `avx2.rs`; other CPUs
//! use the plain Rust below.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod operands;

use std::marker::PhantomData;

pub use self::operands::{
    AccumulateMode, GemmTerm, LANES, LeftOperand, MAX_VECTORS, OutputRegion, RightOperand,
};
use crate::train::backend::cpu::isa::Isa;

/// Most rows of a tile, whatever its width.
const MAX_ROWS: usize = 8;

/// Rows of a tile of so many vectors that fill the registers: 24 accumulators of 32 registers, and with
/// AVX2 12 of 16 for tiles of one vector, of which most of its products consist.
pub fn tile_rows(isa: Isa, vectors: usize) -> usize {
    let fills = vectors == MAX_VECTORS || (isa == Isa::Avx2 && vectors == 1);
    if fills { 6 } else { MAX_ROWS }
}

/// An output that several tasks write to, each its own elements.
#[derive(Clone, Copy)]
pub struct SharedOutput<'a> {
    first: *mut f32,
    length: usize,
    borrowed: PhantomData<&'a mut [f32]>,
}

// SAFETY: it is reached only through `unsafe` functions whose callers promise that no two tasks touch
// the same elements.
unsafe impl Send for SharedOutput<'_> {}
// SAFETY: as above.
unsafe impl Sync for SharedOutput<'_> {}

impl<'a> SharedOutput<'a> {
    /// All of `values`, shared between tasks.
    pub fn new(values: &'a mut [f32]) -> Self {
        Self { first: values.as_mut_ptr(), length: values.len(), borrowed: PhantomData }
    }

    /// `length` elements from `start`, to write.
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
    pub unsafe fn slice_mut(&self, start: usize, length: usize) -> &mut [f32] {
        assert!(start + length <= self.length);
        // SAFETY: within the borrowed slice, and the caller's alone.
        unsafe { std::slice::from_raw_parts_mut(self.first.add(start), length) }
    }

    /// `length` elements from `start`, to read.
    ///
    /// # Safety
    /// Nothing else writes them while the slice lives.
    ///
    /// # Panics
    /// When they reach beyond the end.
    pub unsafe fn slice(&self, start: usize, length: usize) -> &[f32] {
        assert!(start + length <= self.length);
        // SAFETY: within the borrowed slice, and written by nobody, as the caller promises.
        unsafe { std::slice::from_raw_parts(self.first.add(start), length) }
    }
}

/// Computes one tile of `rows` rows.
///
/// # Safety
/// Nothing else reads or writes the elements of `region` meanwhile.
///
/// # Panics
/// Without a term, when the tile has more accumulators than there are registers, or when an access would
/// leave its slice.
pub unsafe fn multiply_tile(
    isa: Isa,
    rows: usize,
    terms: &[GemmTerm<'_>],
    mode: AccumulateMode,
    output: &SharedOutput<'_>,
    region: OutputRegion,
) {
    if rows == 0 || region.columns == 0 {
        return;
    }
    // The kernels read and write without bounds checks; these assertions make that sound.
    let vectors = region.columns.div_ceil(LANES);
    assert!(!terms.is_empty() && vectors <= MAX_VECTORS && rows <= tile_rows(isa, vectors));
    assert!(region.start + (rows - 1) * region.stride + region.columns <= output.length);
    for GemmTerm { left, right, k_len, right_is_bf16 } in terms {
        let Some(last) = k_len.checked_sub(1) else { continue };
        let last_of_row = if *right_is_bf16 { 2 * last + 1 } else { last };
        let last_left = left.start + (rows - 1) * left.row_stride + last_of_row * left.k_stride;
        let end_of_right = right.start + last * right.stride + vectors * LANES;
        assert!(last_left < left.elements.len() && end_of_right <= right.elements.len());
    }
    #[cfg(target_arch = "x86_64")]
    {
        // SAFETY: within the output by the assertion.
        let out = unsafe { output.first.add(region.start) };
        // SAFETY: the level was found on this CPU, and the assertions bound every access.
        unsafe {
            match isa {
                Isa::Bf16 => {
                    return avx512::bf16::multiply(rows, vectors, terms, mode, out, region);
                }
                Isa::Avx512 => {
                    return avx512::fp32::multiply(rows, vectors, terms, mode, out, region);
                }
                Isa::Avx2 => return avx2::multiply(rows, vectors, terms, mode, out, region),
                Isa::Portable => {}
            }
        }
    }
    let mut tile = [0.0; MAX_ROWS * MAX_VECTORS * LANES];
    if mode == AccumulateMode::StartFromOutput {
        for (row, into) in tile.chunks_exact_mut(MAX_VECTORS * LANES).take(rows).enumerate() {
            // SAFETY: a row of the region, which is the caller's.
            let from =
                unsafe { output.slice_mut(region.start + row * region.stride, region.columns) };
            into[..region.columns].copy_from_slice(from);
        }
    }
    portable(rows, vectors, terms, &mut tile);
    for (row, from) in tile.chunks_exact(MAX_VECTORS * LANES).take(rows).enumerate() {
        // SAFETY: a row of the region, which is the caller's.
        let into = unsafe { output.slice_mut(region.start + row * region.stride, region.columns) };
        match mode {
            AccumulateMode::Overwrite | AccumulateMode::StartFromOutput => {
                into.copy_from_slice(&from[..region.columns])
            }
            AccumulateMode::AddScaled(factor) => {
                for (into, from) in into.iter_mut().zip(from) {
                    *into += factor * from;
                }
            }
        }
    }
}

/// The accumulators of a tile in memory; each row has room for [`MAX_VECTORS`] vectors.
type Tile = [f32; MAX_ROWS * MAX_VECTORS * LANES];

/// Plain Rust for other CPUs.
fn portable(rows: usize, vectors: usize, terms: &[GemmTerm<'_>], tile: &mut Tile) {
    for GemmTerm { left, right, k_len, right_is_bf16 } in terms {
        for k in 0..*k_len {
            let right = &right.elements[right.start + k * right.stride..][..vectors * LANES];
            for row in 0..rows {
                let value = |number: usize| {
                    let at = left.start + row * left.row_stride + number * left.k_stride;
                    f32::from_bits(left.elements[at])
                };
                let sums = &mut tile[row * MAX_VECTORS * LANES..][..vectors * LANES];
                if !right_is_bf16 {
                    let element = value(k);
                    for (sum, right) in sums.iter_mut().zip(right) {
                        *sum += element * f32::from_bits(*right);
                    }
                    continue;
                }
                let (first, second) = (value(2 * k), value(2 * k + 1));
                for (sum, right) in sums.iter_mut().zip(right) {
                    *sum += first * f32::from_bits(right << 16);
                    *sum += second * f32::from_bits(right & 0xffff_0000);
                }
            }
        }
    }
}
