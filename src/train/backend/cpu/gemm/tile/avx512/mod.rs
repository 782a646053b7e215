//! Tiles on AVX-512: thirty-two registers, of which 24 hold accumulators. [`bf16`] is for CPUs that
//! multiply bf16, [`fp32`] for the others.

use std::arch::x86_64::*;
use std::mem::MaybeUninit;

use super::operands::{AccumulateMode, LANES, OutputRegion};

/// Calls a kernel compiled for the number of rows; a macro because rows and vectors are constants of its
/// type.
macro_rules! for_rows {
    ($kernel:ident, $vectors:literal, $rows:expr, $($argument:expr),*) => {
        match $rows {
            8 => $kernel::<8, $vectors>($($argument),*),
            7 => $kernel::<7, $vectors>($($argument),*),
            6 => $kernel::<6, $vectors>($($argument),*),
            5 => $kernel::<5, $vectors>($($argument),*),
            4 => $kernel::<4, $vectors>($($argument),*),
            3 => $kernel::<3, $vectors>($($argument),*),
            2 => $kernel::<2, $vectors>($($argument),*),
            _ => $kernel::<1, $vectors>($($argument),*),
        }
    };
}

pub(super) mod bf16;
pub(super) mod fp32;

/// Loads the accumulators from the output where the mode asks for it. Otherwise the first term starts from
/// zeros; returns whether it does.
///
/// # Safety
/// As [`store_accumulators`].
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn load_accumulators<const ROWS: usize, const VECTORS: usize>(
    mode: AccumulateMode,
    out: *const f32,
    region: OutputRegion,
    sums: &mut MaybeUninit<[[__m512; VECTORS]; ROWS]>,
) -> bool {
    if mode != AccumulateMode::StartFromOutput {
        return true;
    }
    let mut there = [[_mm512_setzero_ps(); VECTORS]; ROWS];
    for (row, sums) in there.iter_mut().enumerate() {
        for (vector, sum) in sums.iter_mut().enumerate() {
            let mask = column_mask::<VECTORS>(vector, region);
            // SAFETY: the mask ends with the columns of the region.
            unsafe {
                *sum = _mm512_maskz_loadu_ps(mask, out.add(row * region.stride + vector * LANES));
            }
        }
    }
    sums.write(there);
    false
}

/// The accumulators that a term adds to. The first term's zeros are made in registers: filling memory with
/// them takes a twentieth of a product's time.
///
/// # Safety
/// The CPU has AVX-512F; the accumulators are initialised unless `is_first`.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn accumulators<const ROWS: usize, const VECTORS: usize>(
    is_first: bool,
    sums: &MaybeUninit<[[__m512; VECTORS]; ROWS]>,
) -> [[__m512; VECTORS]; ROWS] {
    if is_first {
        return [[_mm512_setzero_ps(); VECTORS]; ROWS];
    }
    // SAFETY: the caller's promise.
    unsafe { sums.assume_init_read() }
}

/// Which columns of a vector are in the region: the last vector may cover fewer.
#[inline]
fn column_mask<const VECTORS: usize>(vector: usize, region: OutputRegion) -> __mmask16 {
    if vector + 1 < VECTORS {
        return __mmask16::MAX;
    }
    let last = region.columns - (VECTORS - 1) * LANES;
    (u32::MAX >> (32 - last)) as __mmask16
}

/// Stores the accumulators to the output.
///
/// # Safety
/// The CPU has AVX-512F, and the region is the caller's.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn store_accumulators<const ROWS: usize, const VECTORS: usize>(
    sums: &[[__m512; VECTORS]; ROWS],
    mode: AccumulateMode,
    out: *mut f32,
    region: OutputRegion,
) {
    for (row, sums) in sums.iter().enumerate() {
        for (vector, sum) in sums.iter().enumerate() {
            let mask = column_mask::<VECTORS>(vector, region);
            // SAFETY: the mask ends with the columns of the region.
            unsafe {
                let into = out.add(row * region.stride + vector * LANES);
                let value = match mode {
                    AccumulateMode::Overwrite | AccumulateMode::StartFromOutput => *sum,
                    AccumulateMode::AddScaled(factor) => {
                        let there = _mm512_maskz_loadu_ps(mask, into);
                        _mm512_fmadd_ps(_mm512_set1_ps(factor), *sum, there)
                    }
                };
                _mm512_mask_storeu_ps(into, mask, value);
            }
        }
    }
}
