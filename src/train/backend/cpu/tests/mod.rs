//! Every kernel on every level of instructions against plain 64-bit arithmetic, on odd shapes.

use proptest::prelude::*;

use super::isa::Isa;
use super::layers::activation;
use super::layers::cross_entropy::{Backward, cross_entropy};
use super::layers::norm;
use super::layers::rope;
use crate::train::backend::{Activation, RowLoss};

mod attention;
mod linear;

/// Numbers between -1 and 1 that look random and are the same each time.
fn noise(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..count)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect()
}

fn levels() -> impl Iterator<Item = Isa> {
    Isa::ALL.into_iter().filter(|isa| isa.is_available())
}

/// Largest difference, relative to the largest wanted value.
fn difference(got: &[f32], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    let most = want.iter().fold(1e-30f64, |most, value| most.max(value.abs()));
    got.iter()
        .zip(want)
        .fold(0.0f64, |worst, (got, want)| worst.max((f64::from(*got) - want).abs() / most))
}

/// Slope of `value` along each element of `at`, by central differences in 64 bits.
fn slopes(at: &[f32], value: impl Fn(&[f64]) -> f64) -> Vec<f64> {
    let mut point: Vec<f64> = at.iter().map(|x| f64::from(*x)).collect();
    (0..at.len())
        .map(|index| {
            let middle = point[index];
            let step = 1e-5;
            point[index] = middle + step;
            let above = value(&point);
            point[index] = middle - step;
            let below = value(&point);
            point[index] = middle;
            (above - below) / (2.0 * step)
        })
        .collect()
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|x| f64::from(*x)).collect()
}

fn weighted(values: &[f64], weights: &[f32]) -> f64 {
    values.iter().zip(weights).map(|(value, weight)| value * f64::from(*weight)).sum()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn norms_equal_the_formula_forward_and_backward(
        rows in 1usize..5, width in 1usize..50, is_layer in any::<bool>(), seed in 0u64..1000,
    ) {
        let x = noise(rows * width, seed);
        let weight = noise(width, seed + 1);
        let bias = noise(width, seed + 2);
        let gradient = noise(rows * width, seed + 3);
        let epsilon = 1e-3f32;
        let formula = |x: &[f64]| -> Vec<f64> {
            x.chunks(width).flat_map(|row| {
                let mean = if is_layer { row.iter().sum::<f64>() / width as f64 } else { 0.0 };
                let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / width as f64;
                let inverse = 1.0 / (variance + f64::from(epsilon)).sqrt();
                row.iter().enumerate().map(|(i, x)| {
                    let bias = if is_layer { f64::from(bias[i]) } else { 0.0 };
                    (x - mean) * inverse * f64::from(weight[i]) + bias
                }).collect::<Vec<_>>()
            }).collect()
        };
        let want_gradient = slopes(&x, |x| weighted(&formula(x), &gradient));
        for isa in levels() {
            let mut y = vec![0.0; x.len()];
            let bias = is_layer.then_some(&bias[..]);
            norm::forward(isa, &x, &weight, bias, epsilon, &mut y);
            prop_assert!(difference(&y, &formula(&wide(&x))) < 1e-4, "{isa:?}");
            let mut got = gradient.clone();
            norm::backward(isa, &x, &weight, is_layer, epsilon, &mut got);
            for (got, want) in got.iter().zip(&want_gradient) {
                prop_assert!((f64::from(*got) - want).abs() < 2e-3 * want.abs().max(1.0), "{isa:?}");
            }
        }
    }
}

#[test]
fn activations_equal_their_formulas_and_slopes() {
    let count = 333;
    let gate: Vec<f32> = noise(count, 1).iter().map(|x| x * 6.0).collect();
    let up = noise(count, 2);
    let gradient = noise(count, 3);
    for activation in [Activation::Silu, Activation::GeluTanh, Activation::Gelu] {
        let formula = |x: f64| match activation {
            Activation::Silu => x / (1.0 + (-x).exp()),
            Activation::GeluTanh => {
                let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
                0.5 * x * (1.0 + inner.tanh())
            }
            Activation::Gelu => 0.5 * x * (1.0 + libm::erf(x / 2.0f64.sqrt())),
        };
        let plain: Vec<f64> = gate.iter().map(|x| formula(f64::from(*x))).collect();
        let gated: Vec<f64> = plain.iter().zip(&up).map(|(p, up)| p * f64::from(*up)).collect();
        let slope = slopes(&gate, |x| x.iter().map(|x| formula(*x)).sum());
        for isa in levels() {
            let mut out = vec![0.0; count];
            activation::forward(isa, activation, &gate, &mut out);
            assert!(difference(&out, &plain) < 1e-6, "{activation:?} {isa:?}");
            activation::gated_forward(isa, activation, &gate, &up, &mut out);
            assert!(difference(&out, &gated) < 1e-6, "{activation:?} {isa:?}");

            let mut through = gradient.clone();
            activation::backward(isa, activation, &gate, &mut through);
            let (mut gate_gradient, mut up_gradient) = (gate.clone(), up.clone());
            activation::gated_backward(
                isa,
                activation,
                &mut gate_gradient,
                &mut up_gradient,
                &gradient,
            );
            for i in 0..count {
                let g = f64::from(gradient[i]);
                assert!(
                    (f64::from(through[i]) - g * slope[i]).abs() < 1e-5,
                    "{activation:?} {isa:?}"
                );
                let want = g * f64::from(up[i]) * slope[i];
                assert!(
                    (f64::from(gate_gradient[i]) - want).abs() < 1e-5,
                    "{activation:?} {isa:?}"
                );
                assert!((f64::from(up_gradient[i]) - g * plain[i]).abs() < 1e-5);
            }
        }
    }
}

#[test]
fn cross_entropy_equals_the_formula_and_its_slope() {
    let (rows, vocabulary) = (5, 37);
    let logits: Vec<f32> = noise(rows * vocabulary, 4).iter().map(|x| x * 5.0).collect();
    let targets: Vec<u32> = vec![0, 36, 7, 20, 11];
    let factors: Vec<f32> = vec![0.25, -1.0, 0.5, 0.0, 2.0];
    for cap in [None, Some(3.0f32)] {
        let formula = |logits: &[f64]| -> f64 {
            logits
                .chunks(vocabulary)
                .zip(&targets)
                .zip(&factors)
                .map(|((row, target), factor)| {
                    let bent: Vec<f64> = row
                        .iter()
                        .map(|x| cap.map_or(*x, |cap| f64::from(cap) * (x / f64::from(cap)).tanh()))
                        .collect();
                    let loss =
                        bent.iter().map(|x| x.exp()).sum::<f64>().ln() - bent[*target as usize];
                    f64::from(*factor) * loss
                })
                .sum()
        };
        let want = slopes(&logits, formula);
        for isa in levels() {
            let mut gradient = logits.clone();
            let mut losses = vec![RowLoss::default(); rows];
            let mut scales = vec![0.0; rows];
            let backward = Backward { factors: &factors, scales: &mut scales };
            cross_entropy(isa, &mut gradient, &targets, cap, Some(backward), &mut losses);
            for (row, scale) in gradient.chunks_mut(vocabulary).zip(&scales) {
                row.iter_mut().for_each(|value| *value *= scale);
            }
            let weighed = losses.iter().zip(&factors);
            let total: f64 = weighed.map(|(row, factor)| f64::from(row.loss * factor)).sum();
            assert!((total - formula(&wide(&logits))).abs() < 1e-4, "{isa:?}");
            assert!(difference(&gradient, &want) < 1e-4, "{isa:?} {cap:?}");
        }
    }
}

#[test]
fn rotating_back_undoes_rotating() {
    let (tokens, heads, head_dim, half) = (7, 3, 12, 4);
    let width = heads * head_dim;
    let x = noise(tokens * width, 5);
    let angles = noise(tokens * half, 6);
    let cos: Vec<f32> = angles.iter().map(|x| x.cos()).collect();
    let sin: Vec<f32> = angles.iter().map(|x| x.sin()).collect();
    let positions: Vec<u32> = (0..tokens as u32).rev().collect();
    for isa in levels() {
        let mut turned = x.clone();
        rope::rotate(isa, &mut turned, head_dim, width, &cos, &sin, half, &positions, false);
        let position = positions[2] as usize;
        let angle = angles[position * half + 1];
        let (a, b) = (x[2 * width + 1], x[2 * width + 1 + half]);
        assert!((turned[2 * width + 1] - (a * angle.cos() - b * angle.sin())).abs() < 1e-6);
        assert_eq!(turned[2 * half..head_dim], x[2 * half..head_dim], "the rest of a head stays");
        rope::rotate(isa, &mut turned, head_dim, width, &cos, &sin, half, &positions, true);
        assert!(difference(&turned, &wide(&x)) < 1e-6, "{isa:?}");
    }
}
