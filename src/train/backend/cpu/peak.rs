//! Peak performance of the CPU: loops of multiply-adds on registers alone, one for each level of
//! instructions, on every thread at once. No kernel can be faster, so the share of the peak that training
//! reaches shows how much is left to gain.

use std::hint::black_box;
use std::time::{Duration, Instant};

use super::isa::Isa;

/// Time of one measurement, and their number. A disturbance makes a measurement slower, so the fastest is
/// used.
const MEASUREMENT: Duration = Duration::from_millis(50);
const MEASUREMENTS: usize = 5;

/// Rounds between two readings of the clock, some microseconds.
const ROUNDS: u32 = 2048;

/// Floating-point operations a second of a level, all threads together: dot products of bfloat16 on
/// `Bf16`, multiply-adds of 32-bit floats on the others; a multiply-add counts as two.
///
/// # Panics
/// When this CPU does not have the level.
pub fn measure(isa: Isa) -> f64 {
    assert!(isa.is_available(), "this CPU lacks {}", isa.name());
    let mut fastest: f64 = 0.0;
    for _ in 0..MEASUREMENTS {
        let of_threads: Vec<f64> = rayon::broadcast(|_| measure_thread(isa));
        fastest = fastest.max(of_threads.iter().sum());
    }
    fastest
}

fn measure_thread(isa: Isa) -> f64 {
    let began = Instant::now();
    let mut operations = 0.0;
    loop {
        operations += f64::from(ROUNDS) * run_rounds(isa);
        let elapsed = began.elapsed();
        if elapsed >= MEASUREMENT {
            return operations / elapsed.as_secs_f64();
        }
    }
}

/// Runs [`ROUNDS`] rounds; operations of one round.
fn run_rounds(isa: Isa) -> f64 {
    #[cfg(target_arch = "x86_64")]
    match isa {
        // SAFETY: the level was found on this CPU; the loop itself is safe Rust.
        Isa::Bf16 => return unsafe { x86::bf16() },
        // SAFETY: as above.
        Isa::Avx512 => return unsafe { x86::avx512() },
        // SAFETY: as above.
        Isa::Avx2 => return unsafe { x86::avx2() },
        Isa::Portable => {}
    }
    portable()
}

/// Plain Rust: twelve registers of four floats, which every build target with vectors has. The sums
/// are multiplied, since a product of two constants would be computed once.
fn portable() -> f64 {
    const LANES: usize = 48;
    let (factor, summand) = (black_box(0.5f32), black_box(1.0f32));
    let mut sums = [0.0f32; LANES];
    for _ in 0..ROUNDS {
        for sum in &mut sums {
            *sum = *sum * factor + summand;
        }
    }
    black_box(sums);
    2.0 * LANES as f64
}

/// Each loop has many more independent sums than the latency of its instruction times the number of
/// units that execute it, and leaves registers for the factors.
#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;
    use std::hint::black_box;

    use super::ROUNDS;

    /// Sums of the AVX-512 loops, of 32 registers.
    const SUMS: usize = 24;
    /// Sums of the AVX2 loop, of 16 registers.
    const AVX2_SUMS: usize = 12;

    #[target_feature(enable = "avx512f,avx512bf16")]
    pub(super) fn bf16() -> f64 {
        // A bf16 pair of ones in each element.
        let ones = black_box(_mm512_set1_epi32(0x3f80_3f80));
        // SAFETY: both are 64 plain bytes.
        let ones = unsafe { std::mem::transmute::<__m512i, __m512bh>(ones) };
        let mut sums = [_mm512_setzero_ps(); SUMS];
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                *sum = _mm512_dpbf16_ps(*sum, ones, ones);
            }
        }
        black_box(sums);
        (SUMS * 32 * 2) as f64
    }

    #[target_feature(enable = "avx512f")]
    pub(super) fn avx512() -> f64 {
        let ones = black_box(_mm512_set1_ps(1.0));
        let mut sums = [_mm512_setzero_ps(); SUMS];
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                *sum = _mm512_fmadd_ps(ones, ones, *sum);
            }
        }
        black_box(sums);
        (SUMS * 16 * 2) as f64
    }

    #[target_feature(enable = "avx2,fma")]
    pub(super) fn avx2() -> f64 {
        let ones = black_box(_mm256_set1_ps(1.0));
        let mut sums = [_mm256_setzero_ps(); AVX2_SUMS];
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                *sum = _mm256_fmadd_ps(ones, ones, *sum);
            }
        }
        black_box(sums);
        (AVX2_SUMS * 8 * 2) as f64
    }
}
