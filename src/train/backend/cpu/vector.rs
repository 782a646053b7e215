//! Loops over rows of floats that the compiler vectorises, once for each level of instructions.
//!
//! Each loop is written once as plain Rust and compiled once per [`Isa`]. Sums run in [`LANES`]
//! separate lanes that are added in a fixed order at the end: fast on every level, and the same
//! bits from run to run.

use super::isa::Isa;

/// Separate sums of a reduction; one AVX-512 register.
const LANES: usize = 16;

/// Defines a function that runs the same body compiled for each level of instructions; a macro
/// because `target_feature` is an attribute of a function and cannot be passed along.
macro_rules! for_each_isa {
    ($(#[$doc:meta])* pub fn $name:ident($isa:ident, $($arg:ident: $type:ty),*) $(-> $result:ty)? $body:block) => {
        $(#[$doc])*
        pub fn $name($isa: Isa, $($arg: $type),*) $(-> $result)? {
            #[inline(always)]
            fn plain($($arg: $type),*) $(-> $result)? $body

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw")]
            fn avx512($($arg: $type),*) $(-> $result)? { plain($($arg),*) }

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn avx2($($arg: $type),*) $(-> $result)? { plain($($arg),*) }

            match $isa.for_f32() {
                // SAFETY: the level was found on this CPU; the body itself is safe Rust.
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512 => unsafe { avx512($($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2 => unsafe { avx2($($arg),*) },
                _ => plain($($arg),*),
            }
        }
    };
}
pub(super) use for_each_isa;

/// Adds up lanes in a fixed order.
#[inline(always)]
pub(super) fn add_lanes(lanes: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    let mut lanes = lanes;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] += lanes[lane + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// e^x to about one unit in the last place: x = n·ln 2 + r, a polynomial for e^r, n into the
/// exponent (the classic scheme of Cephes' `expf`). Zero below -87, never infinite.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    // ln 2 in two parts, so that n·ln 2 is exact to more than 24 bits.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Adding and subtracting 1.5·2^23 rounds to the nearest whole number.
    const ROUND: f32 = 12_582_912.0;
    let x = x.clamp(-87.3, 88.0);
    let rounded = x.mul_add(LOG2_E, ROUND);
    let n = rounded - ROUND;
    let r = n.mul_add(-LN2_LOW, n.mul_add(-LN2_HIGH, x));
    let mut p = 1.987_569_1e-4f32;
    p = p.mul_add(r, 1.398_2e-3);
    p = p.mul_add(r, 8.333_452e-3);
    p = p.mul_add(r, 4.166_579_6e-2);
    p = p.mul_add(r, 1.666_666_5e-1);
    p = p.mul_add(r, 0.5);
    let e_r = p.mul_add(r * r, r) + 1.0;
    // n is in the low bits of `rounded`; the shift drops the other bits, so that no checked conversion is
    // needed.
    let power = f32::from_bits(rounded.to_bits().wrapping_add(127) << 23);
    e_r * power
}

/// tanh x from e^(-2|x|); exact signs and limits, absolute error below 1e-7.
#[inline(always)]
pub(super) fn tanh(x: f32) -> f32 {
    let small = exp(-2.0 * x.abs());
    let value = (1.0 - small) / (1.0 + small);
    if x < 0.0 { -value } else { value }
}

for_each_isa! {
    /// Sum of the products.
    pub fn dot(isa, a: &[f32], b: &[f32]) -> f32 {
        let mut lanes = [0.0f32; LANES];
        let (a_blocks, a_rest) = a.as_chunks::<LANES>();
        let (b_blocks, b_rest) = b.as_chunks::<LANES>();
        for (a, b) in a_blocks.iter().zip(b_blocks) {
            for lane in 0..LANES {
                lanes[lane] = a[lane].mul_add(b[lane], lanes[lane]);
            }
        }
        let mut sum = add_lanes(lanes);
        for (a, b) in a_rest.iter().zip(b_rest) {
            sum = a.mul_add(*b, sum);
        }
        sum
    }
}

for_each_isa! {
    /// Sum of the squares, in 64-bit floats.
    pub fn sum_of_squares(isa, values: &[f32]) -> f64 {
        let mut lanes = [0.0f64; LANES];
        for block in values.chunks(LANES) {
            for (lane, value) in lanes.iter_mut().zip(block) {
                let value = f64::from(*value);
                *lane = value.mul_add(value, *lane);
            }
        }
        lanes.iter().sum()
    }
}

for_each_isa! {
    /// Largest element; negative infinity of none.
    pub fn maximum(isa, values: &[f32]) -> f32 {
        let mut lanes = [f32::NEG_INFINITY; LANES];
        let (blocks, rest) = values.as_chunks::<LANES>();
        for block in blocks {
            for lane in 0..LANES {
                lanes[lane] = if block[lane] > lanes[lane] { block[lane] } else { lanes[lane] };
            }
        }
        lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |most, value| most.max(*value))
    }
}

for_each_isa! {
    /// Replaces each x by e^(factor · x - shift) and returns the sum.
    pub fn exp_and_sum(isa, values: &mut [f32], factor: f32, shift: f32) -> f32 {
        let mut lanes = [0.0f32; LANES];
        let (blocks, rest) = values.as_chunks_mut::<LANES>();
        for block in blocks {
            for lane in 0..LANES {
                block[lane] = exp(block[lane].mul_add(factor, -shift));
                lanes[lane] += block[lane];
            }
        }
        let mut sum = add_lanes(lanes);
        for value in rest {
            *value = exp(value.mul_add(factor, -shift));
            sum += *value;
        }
        sum
    }
}

for_each_isa! {
    /// Multiplies each element by `factor`.
    pub fn scale(isa, values: &mut [f32], factor: f32) {
        for value in values {
            *value *= factor;
        }
    }
}

for_each_isa! {
    /// Adds `factor` times `from` to `into`.
    pub fn add_scaled(isa, into: &mut [f32], from: &[f32], factor: f32) {
        for (into, from) in into.iter_mut().zip(from) {
            *into = from.mul_add(factor, *into);
        }
    }
}

for_each_isa! {
    /// Replaces each score s by cap·tanh(s / cap).
    pub fn soft_cap(isa, values: &mut [f32], cap: f32) {
        for value in values {
            *value = cap * tanh(*value / cap);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_and_tanh_are_right_to_a_few_units_in_the_last_place() {
        for step in -8700..=8800 {
            let x = step as f32 / 100.0;
            let want = f64::from(x).exp();
            assert!((f64::from(exp(x)) - want).abs() <= 3e-7 * want, "exp({x})");
            assert!((f64::from(tanh(x)) - f64::from(x).tanh()).abs() <= 2e-7, "tanh({x})");
        }
        assert!(exp(-1e9) < 2e-38);
    }

    #[test]
    fn every_level_of_instructions_computes_the_same() {
        let a: Vec<f32> = (0..77).map(|i| (i as f32 * 0.37).sin()).collect();
        let b: Vec<f32> = (0..77).map(|i| (i as f32 * 0.91).cos()).collect();
        let want: f64 = a.iter().zip(&b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
            assert!((f64::from(dot(isa, &a, &b)) - want).abs() < 1e-5, "{isa:?}");
            assert_eq!(maximum(isa, &a), a.iter().copied().fold(f32::MIN, f32::max));
            let mut values = a.clone();
            let sum = exp_and_sum(isa, &mut values, 1.0, 0.5);
            let want: f64 = a.iter().map(|x| (f64::from(*x) - 0.5).exp()).sum();
            assert!((f64::from(sum) - want).abs() < 1e-4, "{isa:?}");
        }
    }
}
