//! Normalisation of rows, forward and backward.
//!
//! RMS norm (Zhang & Sennrich 2019): y = x · w / √(mean(x²) + ε). Layer norm (Ba et al. 2016):
//! y = (x - mean) · w / √(variance + ε) + b. Gemma's 1 + w is folded into the weight when it is
//! loaded.

use rayon::prelude::*;

use crate::train::backend::cpu::isa::Isa;
use crate::train::backend::cpu::vector;

/// Least rows of a task, so that starting tasks stays cheap.
const ROWS_PER_TASK: usize = 16;

/// Shift and scale of a row. The backward pass computes them again: it reads the row anyway.
#[derive(Debug, Clone, Copy, Default)]
pub struct RowStatistics {
    /// Mean that is subtracted; zero for RMS norm.
    pub mean: f32,
    /// 1 / √(… + ε).
    pub inverse: f32,
}

/// Normalises rows of `weight.len()` floats. With `bias` it is layer norm, without RMS norm.
pub fn forward(
    isa: Isa,
    x: &[f32],
    weight: &[f32],
    bias: Option<&[f32]>,
    epsilon: f32,
    y: &mut [f32],
) {
    let width = weight.len();
    let rows = x.par_chunks_exact(width).with_min_len(ROWS_PER_TASK);
    rows.zip(y.par_chunks_exact_mut(width)).for_each(|(x, y)| {
        let statistics = statistics(isa, x, bias.is_some(), epsilon);
        write_row(isa, x, weight, statistics, y);
        if let Some(bias) = bias {
            vector::add_scaled(isa, y, bias, 1.0);
        }
    });
}

/// Gradient of the input, written over `gradient`, which comes in as the output's.
pub fn backward(
    isa: Isa,
    x: &[f32],
    weight: &[f32],
    is_layer_norm: bool,
    epsilon: f32,
    gradient: &mut [f32],
) {
    let width = weight.len();
    let rows = gradient.par_chunks_exact_mut(width).with_min_len(ROWS_PER_TASK);
    rows.zip(x.par_chunks_exact(width)).for_each(|(gradient, x)| {
        let statistics = statistics(isa, x, is_layer_norm, epsilon);
        times(isa, gradient, weight);
        let along = projection(isa, gradient, x, statistics) / width as f32;
        let mean = if is_layer_norm { sum(isa, gradient) / width as f32 } else { 0.0 };
        backward_row(isa, gradient, x, statistics, along, mean);
    });
}

fn statistics(isa: Isa, x: &[f32], is_layer_norm: bool, epsilon: f32) -> RowStatistics {
    let width = x.len() as f32;
    let mean = if is_layer_norm { sum(isa, x) / width } else { 0.0 };
    let variance = squares(isa, x, mean) / width;
    RowStatistics { mean, inverse: 1.0 / (variance + epsilon).sqrt() }
}

vector::for_each_isa! {
    /// Sum of the elements.
    pub fn sum(isa, values: &[f32]) -> f32 {
        lanes(values, |value| value)
    }
}

vector::for_each_isa! {
    /// Sum of the squared distances from `mean`.
    pub fn squares(isa, values: &[f32], mean: f32) -> f32 {
        lanes(values, |value| (value - mean) * (value - mean))
    }
}

/// Sum of `of` each element, in sixteen lanes added in a fixed order.
#[inline(always)]
fn lanes(values: &[f32], of: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0f32; 16];
    let (blocks, rest) = values.as_chunks::<16>();
    for block in blocks {
        for (lane, value) in lanes.iter_mut().zip(block) {
            *lane += of(*value);
        }
    }
    for (lane, value) in lanes.iter_mut().zip(rest) {
        *lane += of(*value);
    }
    vector::add_lanes(lanes)
}

vector::for_each_isa! {
    /// y = (x - mean) · inverse · w.
    pub fn write_row(isa, x: &[f32], weight: &[f32], statistics: RowStatistics, y: &mut [f32]) {
        for ((y, x), weight) in y.iter_mut().zip(x).zip(weight) {
            *y = (x - statistics.mean) * statistics.inverse * weight;
        }
    }
}

vector::for_each_isa! {
    /// Multiplies elementwise.
    pub fn times(isa, values: &mut [f32], factors: &[f32]) {
        for (value, factor) in values.iter_mut().zip(factors) {
            *value *= factor;
        }
    }
}

vector::for_each_isa! {
    /// Σ g · x̂ with the normalised x̂ = (x - mean) · inverse.
    pub fn projection(isa, gradient: &[f32], x: &[f32], statistics: RowStatistics) -> f32 {
        let mut lanes = [0.0f32; 16];
        let (g_blocks, g_rest) = gradient.as_chunks::<16>();
        let (x_blocks, x_rest) = x.as_chunks::<16>();
        for (g, x) in g_blocks.iter().zip(x_blocks) {
            for lane in 0..16 {
                lanes[lane] = g[lane].mul_add(x[lane] - statistics.mean, lanes[lane]);
            }
        }
        for (lane, (g, x)) in g_rest.iter().zip(x_rest).enumerate() {
            lanes[lane] = g.mul_add(x - statistics.mean, lanes[lane]);
        }
        vector::add_lanes(lanes) * statistics.inverse
    }
}

vector::for_each_isa! {
    /// g becomes inverse · (g - mean(g) - x̂ · mean(g · x̂)).
    pub fn backward_row(isa, gradient: &mut [f32], x: &[f32], statistics: RowStatistics, along: f32, mean: f32) {
        for (gradient, x) in gradient.iter_mut().zip(x) {
            let normalised = (x - statistics.mean) * statistics.inverse;
            *gradient = statistics.inverse * (*gradient - mean - normalised * along);
        }
    }
}
