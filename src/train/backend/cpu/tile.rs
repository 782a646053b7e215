//! The innermost loops of every matrix product: one tile of the result at a time, held in registers.
//!
//! A tile has up to [`TILE_ROWS`] rows and up to [`PANEL`] columns, in units of [`UNIT`]. It is the sum
//! over `depth` of an element of A (any strides) times a row of B (contiguous, any stride between).
//! Sums run in the order of the depth, whatever the number of threads, so results repeat exactly.

use super::isa::Isa;

/// Most rows of a tile.
pub const TILE_ROWS: usize = 8;

/// Columns of one AVX-512 register; widths of tiles are whole units.
pub const UNIT: usize = 16;

/// Most columns of a tile, and the columns of a packed panel: three units, which with eight rows
/// makes 24 sums of 32 registers.
pub const PANEL: usize = 3 * UNIT;

/// Accumulated tile; a row begins every [`PANEL`] floats, however many columns are in use.
pub type Tile = [f32; TILE_ROWS * PANEL];

/// Where the elements of A lie: element (row, depth) at `start + row * row_stride + depth *
/// depth_stride`.
#[derive(Debug, Clone, Copy)]
pub struct Left<'a> {
    /// The elements.
    pub values: &'a [f32],
    /// Index of element (0, 0).
    pub start: usize,
    /// Distance between rows.
    pub row_stride: usize,
    /// Distance along the depth.
    pub depth_stride: usize,
}

/// Where the rows of B lie: row `depth` at `start + depth * stride`, as long as the tile is wide.
#[derive(Debug, Clone, Copy)]
pub struct Right<'a> {
    /// The elements.
    pub values: &'a [f32],
    /// Index of element (0, 0).
    pub start: usize,
    /// Distance along the depth.
    pub stride: usize,
}

/// Computes one tile in 32-bit floats: the first `units * UNIT` columns of `rows` rows of `tile` are
/// overwritten.
///
/// # Panics
/// When `rows`, `units`, strides and depth reach outside of the slices.
pub fn multiply(
    isa: Isa,
    rows: usize,
    units: usize,
    depth: usize,
    a: Left<'_>,
    b: Right<'_>,
    tile: &mut Tile,
) {
    if rows == 0 || depth == 0 {
        tile[..rows * PANEL].fill(0.0);
        return;
    }
    // The kernels read without bounds checks; these lines are what makes that sound.
    let last_a = a.start + (rows - 1) * a.row_stride + (depth - 1) * a.depth_stride;
    let end_of_b = b.start + (depth - 1) * b.stride + units * UNIT;
    assert!(rows <= TILE_ROWS && (1..=3).contains(&units));
    assert!(last_a < a.values.len() && end_of_b <= b.values.len());
    match isa.for_f32() {
        // SAFETY: the level was found on this CPU, and the assertions bound every access.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => unsafe {
            match units {
                3 => x86::avx512_f32::<3>(rows, depth, a, b, tile),
                2 => x86::avx512_f32::<2>(rows, depth, a, b, tile),
                _ => x86::avx512_f32::<1>(rows, depth, a, b, tile),
            }
        },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { x86::avx2_f32(rows, units, depth, a, b, tile) },
        _ => portable_f32(rows, units, depth, a, b, tile),
    }
}

/// Plain Rust for every other CPU.
fn portable_f32(
    rows: usize,
    units: usize,
    depth: usize,
    a: Left<'_>,
    b: Right<'_>,
    tile: &mut Tile,
) {
    let columns = units * UNIT;
    for row in 0..rows {
        tile[row * PANEL..][..columns].fill(0.0);
    }
    for k in 0..depth {
        let b_row = &b.values[b.start + k * b.stride..][..columns];
        for row in 0..rows {
            let left = a.values[a.start + row * a.row_stride + k * a.depth_stride];
            let sums = &mut tile[row * PANEL..][..columns];
            for (sum, right) in sums.iter_mut().zip(b_row) {
                *sum += left * right;
            }
        }
    }
}

/// Computes one tile from bfloat16 pairs with 32-bit sums: `rows` rows of `tile` are overwritten.
///
/// `a` holds rows of `pairs` words, each two consecutive elements (the earlier in the low half);
/// `panel` holds `pairs` rows of [`PANEL`] such words.
///
/// # Panics
/// When the slices are shorter than that, or the CPU has no bfloat16 dot products.
pub fn multiply_bf16(rows: usize, pairs: usize, a: &[u32], panel: &[u32], tile: &mut Tile) {
    assert!(rows <= TILE_ROWS && a.len() >= rows * pairs && panel.len() >= pairs * PANEL);
    assert!(Isa::Bf16.is_available());
    #[cfg(target_arch = "x86_64")]
    {
        // SAFETY: the CPU has the instructions and the slices are long enough, both asserted.
        unsafe {
            match rows {
                8 => x86::avx512_bf16::<8>(pairs, a, panel, tile),
                7 => x86::avx512_bf16::<7>(pairs, a, panel, tile),
                6 => x86::avx512_bf16::<6>(pairs, a, panel, tile),
                5 => x86::avx512_bf16::<5>(pairs, a, panel, tile),
                4 => x86::avx512_bf16::<4>(pairs, a, panel, tile),
                3 => x86::avx512_bf16::<3>(pairs, a, panel, tile),
                2 => x86::avx512_bf16::<2>(pairs, a, panel, tile),
                1 => x86::avx512_bf16::<1>(pairs, a, panel, tile),
                _ => {}
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{Left, PANEL, Right, Tile, UNIT};

    /// AVX-512 registers in a panel's row.
    const REGISTERS: usize = PANEL / UNIT;

    /// # Safety
    /// The CPU has AVX-512F; `rows`, `UNITS`, `depth` and the strides stay inside of the slices.
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn avx512_f32<const UNITS: usize>(
        rows: usize,
        depth: usize,
        a: Left<'_>,
        b: Right<'_>,
        tile: &mut Tile,
    ) {
        // SAFETY: the caller's promise, passed on.
        unsafe {
            match rows {
                8 => avx512_rows::<8, UNITS>(depth, a, b, tile),
                7 => avx512_rows::<7, UNITS>(depth, a, b, tile),
                6 => avx512_rows::<6, UNITS>(depth, a, b, tile),
                5 => avx512_rows::<5, UNITS>(depth, a, b, tile),
                4 => avx512_rows::<4, UNITS>(depth, a, b, tile),
                3 => avx512_rows::<3, UNITS>(depth, a, b, tile),
                2 => avx512_rows::<2, UNITS>(depth, a, b, tile),
                _ => avx512_rows::<1, UNITS>(depth, a, b, tile),
            }
        }
    }

    /// # Safety
    /// As [`avx512_f32`].
    #[target_feature(enable = "avx512f")]
    unsafe fn avx512_rows<const ROWS: usize, const UNITS: usize>(
        depth: usize,
        a: Left<'_>,
        b: Right<'_>,
        tile: &mut Tile,
    ) {
        let mut sums = [[_mm512_setzero_ps(); UNITS]; ROWS];
        // SAFETY: the caller's promise bounds each pointer.
        unsafe {
            let mut left = a.values.as_ptr().add(a.start);
            let mut right = b.values.as_ptr().add(b.start);
            for _ in 0..depth {
                let mut row_of_b = [_mm512_setzero_ps(); UNITS];
                for (unit, value) in row_of_b.iter_mut().enumerate() {
                    *value = _mm512_loadu_ps(right.add(unit * UNIT));
                }
                for (row, sums) in sums.iter_mut().enumerate() {
                    let element = _mm512_set1_ps(*left.add(row * a.row_stride));
                    for (sum, value) in sums.iter_mut().zip(row_of_b) {
                        *sum = _mm512_fmadd_ps(element, value, *sum);
                    }
                }
                left = left.wrapping_add(a.depth_stride);
                right = right.wrapping_add(b.stride);
            }
            for (row, sums) in sums.iter().enumerate() {
                for (unit, sum) in sums.iter().enumerate() {
                    _mm512_storeu_ps(tile.as_mut_ptr().add(row * PANEL + unit * UNIT), *sum);
                }
            }
        }
    }

    /// Four rows by one unit at a time: eight sums, which hide the latency of the multiply-add.
    ///
    /// # Safety
    /// The CPU has AVX2 and FMA; `rows`, `units`, `depth` and the strides stay inside of the slices.
    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn avx2_f32(
        rows: usize,
        units: usize,
        depth: usize,
        a: Left<'_>,
        b: Right<'_>,
        tile: &mut Tile,
    ) {
        for unit in 0..units {
            for row in (0..rows).step_by(4) {
                // SAFETY: the caller's promise, for a part of the tile.
                unsafe {
                    match rows - row {
                        1 => avx2_part::<1>(row, unit, depth, a, b, tile),
                        2 => avx2_part::<2>(row, unit, depth, a, b, tile),
                        3 => avx2_part::<3>(row, unit, depth, a, b, tile),
                        _ => avx2_part::<4>(row, unit, depth, a, b, tile),
                    }
                }
            }
        }
    }

    /// # Safety
    /// As [`avx2_f32`], for `ROWS` rows from `row` and the columns of `unit`.
    #[target_feature(enable = "avx2,fma")]
    unsafe fn avx2_part<const ROWS: usize>(
        row: usize,
        unit: usize,
        depth: usize,
        a: Left<'_>,
        b: Right<'_>,
        tile: &mut Tile,
    ) {
        let mut sums = [[_mm256_setzero_ps(); 2]; ROWS];
        // SAFETY: the caller's promise bounds each pointer.
        unsafe {
            let mut left = a.values.as_ptr().add(a.start + row * a.row_stride);
            let mut right = b.values.as_ptr().add(b.start + unit * UNIT);
            for _ in 0..depth {
                let low = _mm256_loadu_ps(right);
                let high = _mm256_loadu_ps(right.add(8));
                for (row, sums) in sums.iter_mut().enumerate() {
                    let element = _mm256_set1_ps(*left.add(row * a.row_stride));
                    sums[0] = _mm256_fmadd_ps(element, low, sums[0]);
                    sums[1] = _mm256_fmadd_ps(element, high, sums[1]);
                }
                left = left.wrapping_add(a.depth_stride);
                right = right.wrapping_add(b.stride);
            }
            for (part, sums) in sums.iter().enumerate() {
                let start = tile.as_mut_ptr().add((row + part) * PANEL + unit * UNIT);
                _mm256_storeu_ps(start, sums[0]);
                _mm256_storeu_ps(start.add(8), sums[1]);
            }
        }
    }

    /// # Safety
    /// The CPU has AVX-512 BF16; `a` holds `ROWS * pairs` words and `panel` `pairs * PANEL`.
    #[target_feature(enable = "avx512f,avx512bf16")]
    pub(super) unsafe fn avx512_bf16<const ROWS: usize>(
        pairs: usize,
        a: &[u32],
        panel: &[u32],
        tile: &mut Tile,
    ) {
        let mut sums = [[_mm512_setzero_ps(); REGISTERS]; ROWS];
        // SAFETY: the caller's promise bounds each pointer; __m512i and __m512bh are both 64 plain
        // bytes.
        unsafe {
            let left = a.as_ptr();
            let mut right = panel.as_ptr();
            for pair in 0..pairs {
                let mut row_of_b = [_mm512_setzero_si512(); REGISTERS];
                for (register, value) in row_of_b.iter_mut().enumerate() {
                    *value = _mm512_loadu_si512(right.add(register * 16).cast());
                }
                right = right.wrapping_add(PANEL);
                for (row, sums) in sums.iter_mut().enumerate() {
                    let element = _mm512_set1_epi32(left.add(row * pairs + pair).read() as i32);
                    for (sum, value) in sums.iter_mut().zip(row_of_b) {
                        *sum = _mm512_dpbf16_ps(
                            *sum,
                            std::mem::transmute::<__m512i, __m512bh>(element),
                            std::mem::transmute::<__m512i, __m512bh>(value),
                        );
                    }
                }
            }
            for (row, sums) in sums.iter().enumerate() {
                for (register, sum) in sums.iter().enumerate() {
                    _mm512_storeu_ps(tile.as_mut_ptr().add(row * PANEL + register * 16), *sum);
                }
            }
        }
    }
}
