//! Rotary position embedding (RoPE, Su et al. 2021) in the half-split form of Hugging Face: element i of a
//! head rotates with element i + rotary/2.

use rayon::prelude::*;

use crate::train::backend::cpu::isa::Isa;
use crate::train::backend::cpu::vector;

/// Rotates the first `2 · half` elements of every head in place. `x` is `[tokens, heads · head_dim]`; `cos`
/// and `sin` are `[positions, half]`; `positions` has the position of each token. `backward` rotates by the
/// opposite angle.
#[expect(clippy::too_many_arguments, reason = "a matrix, its shape and two tables")]
pub fn rotate(
    isa: Isa,
    x: &mut [f32],
    head_dim: usize,
    width: usize,
    cos: &[f32],
    sin: &[f32],
    half: usize,
    positions: &[u32],
    backward: bool,
) {
    let direction = if backward { -1.0 } else { 1.0 };
    let rows = x.par_chunks_exact_mut(width).with_min_len(16).zip(positions);
    rows.for_each(|(row, position)| {
        let start = *position as usize * half;
        let (cos, sin) = (&cos[start..][..half], &sin[start..][..half]);
        for head in row.chunks_exact_mut(head_dim) {
            let (low, high) = head.split_at_mut(half);
            rotate_pairs(isa, low, &mut high[..half], cos, sin, direction);
        }
    });
}

vector::for_each_isa! {
    /// (low, high) rotated by the angle.
    pub fn rotate_pairs(isa, low: &mut [f32], high: &mut [f32], cos: &[f32], sin: &[f32], direction: f32) {
        for (((low, high), cos), sin) in low.iter_mut().zip(high).zip(cos).zip(sin) {
            let (a, b) = (*low, *high);
            let sin = sin * direction;
            *low = a * cos - b * sin;
            *high = b * cos + a * sin;
        }
    }
}
