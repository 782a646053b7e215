//! Every kernel on every level of instructions against plain 64-bit arithmetic, on odd shapes.

use proptest::prelude::*;

use super::activation::{self, Curve};
use std::sync::Arc;

use super::attention::backward::{self, Gradients, Made};
use super::attention::{self, Inputs};
use super::isa::Isa;
use super::linear::{self, Layer, PackedPair, Results, Rows};
use super::loss::cross_entropy;
use super::matrix::Packed;
use super::memory::{Matrix, Pool};
use super::norm;
use super::rope;
use super::tile::Store;
use crate::train::backend::{AttentionShape, RowLoss, Segment};

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
    fn adapted_layers_equal_plain_sums_on_any_shape(
        rows in 1usize..300, inputs in 1usize..70,
        outputs in prop::collection::vec(1usize..120, 1..4), rank in 1usize..20,
        has_weight in any::<bool>(), has_pair in any::<bool>(), seed in 0u64..1000,
    ) {
        let has_pair = has_pair || !has_weight;
        let case = Adapted::new(rows, inputs, &outputs, [has_weight, has_pair], rank, seed);
        for isa in levels() {
            let tolerance = if isa == Isa::Bf16 { 0.02 } else { 2e-5 };
            for (name, difference) in case.differences(isa) {
                prop_assert!(difference < tolerance, "{isa:?} {name} {difference}");
            }
        }
    }

    #[test]
    fn packed_matrices_read_back_row_by_row(
        outputs in 1usize..120, inputs in 1usize..70, seed in 0u64..1000,
    ) {
        let pool = Arc::new(Pool::default());
        let values = noise(outputs * inputs, seed);
        let transposed: Vec<f32> =
            (0..inputs * outputs).map(|i| values[i % outputs * inputs + i / outputs]).collect();
        for isa in levels() {
            let tolerance = if isa == Isa::Bf16 { 0.004 } else { 0.0 };
            let of_rows = Packed::of_rows(isa, &pool, &values, outputs, inputs);
            let of_columns = Packed::of_columns(isa, &pool, &transposed, outputs, inputs);
            for (output, want) in values.chunks_exact(inputs).enumerate() {
                let mut rows = [vec![0.0; inputs], vec![0.0; inputs]];
                of_rows.read_row(output, &mut rows[0]);
                of_columns.read_row(output, &mut rows[1]);
                prop_assert_eq!(&rows[0], &rows[1]);
                prop_assert!(difference(&rows[0], &wide(want)) <= tolerance);
            }
        }
    }

    #[test]
    fn attention_equals_the_formula_forward_and_backward(
        lengths in prop::collection::vec((1usize..70, any::<bool>()), 1..5),
        heads in prop::sample::select(vec![(1usize, 1usize), (4, 2), (3, 1), (2, 2)]),
        head_dim in 1usize..40,
        window in prop::option::of(1usize..60),
        soft_cap in prop::option::of(1.0f32..6.0),
        seed in 0u64..1000,
    ) {
        let shape = AttentionShape { heads: heads.0, kv_heads: heads.1, head_dim, scale: 0.4, window, soft_cap };
        // Each segment stands for itself, or continues the one before it with all that it continues,
        // or branches off the first.
        let mut segments: Vec<Segment> = Vec::new();
        let mut tokens = 0;
        for (index, (length, continues)) in lengths.iter().enumerate() {
            let before = match segments.last() {
                Some(last) if *continues && index % 2 == 1 => last.seen().collect(),
                Some(_) if *continues => vec![segments[0].rows.clone()],
                _ => Vec::new(),
            };
            segments.push(Segment { rows: tokens..tokens + length, before });
            tokens += length;
        }
        let (query_width, kv_width) = (shape.heads * head_dim, shape.kv_heads * head_dim);
        let queries = noise(tokens * query_width, seed);
        let keys = noise(tokens * kv_width, seed + 1);
        let values = noise(tokens * kv_width, seed + 2);
        let gradient = noise(tokens * query_width, seed + 3);
        let want = attention_in_64_bits(&queries, &keys, &values, &gradient, &segments, &shape);
        let inputs = Inputs { queries: &queries, keys: &keys, values: &values };
        for isa in levels() {
            let mut output = vec![9.0; tokens * query_width];
            let mut log_sums = vec![0.0; tokens * shape.heads];
            let pool = Arc::new(Pool::default());
            let (into, sums) = (&mut output, &mut log_sums);
            attention::forward::forward(isa, &pool, &inputs, &segments, &shape, into, sums);
            let mut made = [query_width, kv_width, kv_width].map(|width| vec![9.0; tokens * width]);
            let [queries, keys, values] = &mut made;
            let gradients = Gradients { queries, keys, values };
            let forward =
                Made { output: &output, log_sums: &log_sums, gradient: &gradient };
            backward::backward(isa, &pool, &inputs, &segments, &shape, forward, gradients);
            let tolerance = if isa == Isa::Bf16 { 0.02 } else { 1e-5 };
            prop_assert!(difference(&output, &want[0]) < tolerance, "{isa:?} output");
            for (got, want) in made.iter().zip(&want[1..]) {
                // A single visible key has no gradient: compare with the scale of the others.
                let largest = want.iter().fold(0.0f64, |most, x| most.max(x.abs()));
                let worst = difference(got, want) * largest;
                prop_assert!(worst < 2.0 * tolerance * largest.max(1.0), "{isa:?} {worst}");
            }
        }
    }

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

/// Layers of one input, what they should come to, and their gradients.
struct Adapted {
    has: [bool; 2],
    inputs: usize,
    rank: usize,
    x: Vec<f32>,
    /// For each layer W, A, B, bias and the gradient of its result.
    layers: Vec<[Vec<f32>; 5]>,
}

/// `[rows, depth] · [columns, depth]ᵀ` in 64 bits.
fn product(left: &[f64], right: &[f64], depth: usize) -> Vec<f64> {
    let mut made = Vec::new();
    for left in left.chunks_exact(depth) {
        for right in right.chunks_exact(depth) {
            made.push(left.iter().zip(right).map(|(a, b)| a * b).sum());
        }
    }
    made
}

fn transpose(values: &[f64], columns: usize) -> Vec<f64> {
    let rows = values.len() / columns;
    (0..values.len()).map(|i| values[i % rows * columns + i / rows]).collect()
}

impl Adapted {
    const SCALE: f32 = 1.5;

    fn new(
        rows: usize,
        inputs: usize,
        outputs: &[usize],
        has: [bool; 2],
        rank: usize,
        seed: u64,
    ) -> Self {
        let layers = outputs.iter().zip(1u64..).map(|(outputs, number)| {
            let sizes = [outputs * inputs, rank * inputs, outputs * rank, *outputs, rows * outputs];
            let mut part = 0;
            sizes.map(|size| {
                part += 1;
                noise(size, seed + 10 * number + part)
            })
        });
        let x = noise(rows * inputs, seed);
        Self { has, inputs, rank, x, layers: layers.collect() }
    }

    /// What is off, on one level of instructions: each by its name.
    fn differences(&self, isa: Isa) -> Vec<(&'static str, f64)> {
        let Self { inputs, rank, .. } = *self;
        let [has_weight, has_pair] = self.has;
        let rows = self.x.len() / inputs;
        let scale = f64::from(Self::SCALE);
        let pool = Arc::new(Pool::default());
        let matrix = |values: &[f32], columns: usize| -> Matrix {
            let mut made = pool.take(values.len() / columns, columns);
            made.values_mut().copy_from_slice(values);
            made
        };
        let x = Rows { values: &self.x, columns: inputs };
        let mut off = Vec::new();

        let mut packed = Vec::new();
        for [weight, a, b, ..] in &self.layers {
            let outputs = b.len() / rank;
            packed.push((
                Packed::of_rows(isa, &pool, weight, outputs, inputs),
                Packed::of_columns(isa, &pool, weight, inputs, outputs),
                matrix(a, inputs),
                matrix(b, rank),
            ));
        }
        let mut results: Vec<[Vec<f32>; 2]> = self
            .layers
            .iter()
            .map(|layer| [vec![0.5; rows * layer[3].len()], vec![0.0; rows * rank]])
            .collect();
        let layers: Vec<Layer<'_>> = (packed.iter().zip(&self.layers))
            .map(|((forward, _, a, b), layer)| Layer {
                weight: has_weight.then_some(forward),
                bias: has_weight.then_some(&layer[3][..]),
                pair: has_pair.then(|| PackedPair::forward(isa, &pool, a, b, Self::SCALE)),
            })
            .collect();
        let mut into: Vec<Results<'_>> =
            results.iter_mut().map(|[y, inner]| Results { y, inner }).collect();
        linear::forward(isa, x, &layers, Store::Add(1.0), &mut into);
        drop(layers);

        let mut want_x = vec![0.25f64; self.x.len()];
        let mut want_pairs = Vec::new();
        for ([weight, a, b, bias, gradient], [y, inner]) in self.layers.iter().zip(&results) {
            let [weight, a, b, gradient] = [weight, a, b, gradient].map(|values| wide(values));
            let outputs = bias.len();
            let mut want = vec![0.5f64; rows * outputs];
            let add = |into: &mut [f64], from: &[f64], factor: f64| {
                into.iter_mut().zip(from).for_each(|(into, from)| *into += factor * from);
            };
            if has_weight {
                add(&mut want, &product(&wide(&self.x), &weight, inputs), 1.0);
                add(&mut want, &wide(&bias.repeat(rows)), 1.0);
                add(&mut want_x, &product(&gradient, &transpose(&weight, inputs), outputs), 1.0);
            }
            let between = product(&wide(&self.x), &a, inputs);
            let back = product(&gradient, &transpose(&b, rank), outputs);
            if has_pair {
                add(&mut want, &product(&between, &b, rank), scale);
                add(&mut want_x, &product(&back, &transpose(&a, inputs), rank), scale);
                off.push(("inner", difference(inner, &between)));
            }
            off.push(("y", difference(y, &want)));
            let of_a: Vec<f64> =
                product(&transpose(&back, rank), &transpose(&wide(&self.x), inputs), rows);
            let of_b: Vec<f64> =
                product(&transpose(&gradient, outputs), &transpose(&between, rank), rows);
            want_pairs
                .push([of_a, of_b].map(|of| of.iter().map(|x| scale * x).collect::<Vec<_>>()));
        }

        let gradients: Vec<Rows<'_>> = (self.layers.iter())
            .map(|layer| Rows { values: &layer[4], columns: layer[3].len() })
            .collect();
        let layers: Vec<Layer<'_>> = (packed.iter())
            .map(|(_, backward, a, b)| Layer {
                weight: has_weight.then_some(backward),
                bias: None,
                pair: has_pair.then(|| PackedPair::backward(isa, &pool, a, b, Self::SCALE)),
            })
            .collect();
        let mut into = vec![0.25f32; self.x.len()];
        let mut inner: Vec<Matrix> = packed.iter().map(|_| pool.take(rows, rank)).collect();
        let mut made: Vec<&mut [f32]> = inner.iter_mut().map(Matrix::values_mut).collect();
        linear::backward(isa, &gradients, &layers, Store::Add(1.0), Some(&mut into), &mut made);
        off.push(("gradient of x", difference(&into, &want_x)));
        if !has_pair {
            return off;
        }
        for (index, [want_a, want_b]) in want_pairs.iter().enumerate() {
            let forward = matrix(&results[index][1], rank);
            let (mut of_a, mut of_b) = (vec![0.0; want_a.len()], vec![0.0; want_b.len()]);
            linear::pair_gradients(
                isa,
                &pool,
                x,
                gradients[index],
                &forward,
                &inner[index],
                Self::SCALE,
                &mut of_a,
                &mut of_b,
            );
            off.push(("gradient of A", difference(&of_a, want_a)));
            off.push(("gradient of B", difference(&of_b, want_b)));
        }
        off
    }
}

#[test]
fn a_query_comes_to_the_same_bits_however_its_text_is_cut() {
    let shape = AttentionShape {
        heads: 4,
        kv_heads: 2,
        head_dim: 24,
        scale: 0.3,
        window: None,
        soft_cap: None,
    };
    let tokens = 200;
    let values = noise(tokens * 96, 1);
    let inputs =
        Inputs { queries: &values, keys: &values[..tokens * 48], values: &values[..tokens * 48] };
    for isa in levels() {
        for window in [None, Some(37)] {
            let shape = AttentionShape { window, ..shape };
            let run = |segments: &[Segment]| {
                let (mut output, mut sums) = (vec![0.0; tokens * 96], vec![0.0; tokens * 4]);
                let pool = Arc::new(Pool::default());
                let (into, sums) = (&mut output, &mut sums);
                attention::forward::forward(isa, &pool, &inputs, segments, &shape, into, sums);
                output
            };
            let whole = run(&[Segment::alone(0..tokens)]);
            for cuts in [[2, 50], [48, 96], [70, 144], [100, 102]] {
                let [first, second] = cuts;
                let cut = run(&[
                    Segment::alone(0..first),
                    Segment {
                        rows: first..second,
                        before: Segment::alone(0..first).seen().collect(),
                    },
                    Segment { rows: second..tokens, before: vec![0..first, first..second] },
                ]);
                assert!(whole == cut, "{isa:?} {window:?} {cuts:?}");
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
    for curve in [Curve::Silu, Curve::GeluTanh, Curve::Gelu] {
        let formula = |x: f64| match curve {
            Curve::Silu => x / (1.0 + (-x).exp()),
            Curve::GeluTanh => {
                let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
                0.5 * x * (1.0 + inner.tanh())
            }
            Curve::Gelu => 0.5 * x * (1.0 + libm::erf(x / 2.0f64.sqrt())),
        };
        let plain: Vec<f64> = gate.iter().map(|x| formula(f64::from(*x))).collect();
        let gated: Vec<f64> = plain.iter().zip(&up).map(|(p, up)| p * f64::from(*up)).collect();
        let slope = slopes(&gate, |x| x.iter().map(|x| formula(*x)).sum());
        for isa in levels() {
            let mut out = vec![0.0; count];
            activation::forward(isa, curve, &gate, &mut out);
            assert!(difference(&out, &plain) < 1e-6, "{curve:?} {isa:?}");
            activation::gated_forward(isa, curve, &gate, &up, &mut out);
            assert!(difference(&out, &gated) < 1e-6, "{curve:?} {isa:?}");

            let mut through = gradient.clone();
            activation::backward(isa, curve, &gate, &mut through);
            let (mut gate_gradient, mut up_gradient) = (gate.clone(), up.clone());
            activation::gated_backward(isa, curve, &mut gate_gradient, &mut up_gradient, &gradient);
            for i in 0..count {
                let g = f64::from(gradient[i]);
                assert!((f64::from(through[i]) - g * slope[i]).abs() < 1e-5, "{curve:?} {isa:?}");
                let want = g * f64::from(up[i]) * slope[i];
                assert!((f64::from(gate_gradient[i]) - want).abs() < 1e-5, "{curve:?} {isa:?}");
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
            cross_entropy(isa, &mut gradient, &targets, cap, Some(&factors), &mut losses);
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

/// Output and gradients of queries, keys and values, straight from the definition.
fn attention_in_64_bits(
    queries: &[f32],
    keys: &[f32],
    values: &[f32],
    gradient: &[f32],
    segments: &[Segment],
    shape: &AttentionShape,
) -> [Vec<f64>; 4] {
    let (heads, kv_heads, width) = (shape.heads, shape.kv_heads, shape.head_dim);
    let at = |x: &[f32], row: usize, all: usize, head: usize, i: usize| {
        f64::from(x[(row * all + head) * width + i])
    };
    let mut made = [queries.len(), queries.len(), keys.len(), values.len()].map(|n| vec![0.0; n]);
    for segment in segments {
        let text: Vec<usize> = segment.seen().flatten().collect();
        for head in 0..heads {
            let kv = head / (heads / kv_heads);
            for row in segment.rows.clone() {
                let place = text.len() - (segment.rows.end - row);
                let first = shape.window.map_or(0, |window| (place + 1).saturating_sub(window));
                let visible = &text[first..=place];
                let mut weights = Vec::new();
                let mut bends = Vec::new();
                for &key in visible {
                    let dot: f64 = (0..width)
                        .map(|i| at(queries, row, heads, head, i) * at(keys, key, kv_heads, kv, i))
                        .sum();
                    let score = dot * f64::from(shape.scale);
                    let bent = shape.soft_cap.map(|cap| (score / f64::from(cap)).tanh());
                    weights.push(
                        bent.map_or(score, |bent| f64::from(shape.soft_cap.unwrap_or(1.0)) * bent)
                            .exp(),
                    );
                    bends.push(bent.map_or(1.0, |bent| 1.0 - bent * bent));
                }
                let sum: f64 = weights.iter().sum();
                let pulls: Vec<f64> = visible
                    .iter()
                    .map(|&key| {
                        (0..width)
                            .map(|i| {
                                at(gradient, row, heads, head, i) * at(values, key, kv_heads, kv, i)
                            })
                            .sum()
                    })
                    .collect();
                let mean: f64 = weights.iter().zip(&pulls).map(|(w, pull)| w / sum * pull).sum();
                for (index, &key) in visible.iter().enumerate() {
                    let weight = weights[index] / sum;
                    let slope =
                        weight * (pulls[index] - mean) * bends[index] * f64::from(shape.scale);
                    for i in 0..width {
                        let query_at = (row * heads + head) * width + i;
                        let key_at = (key * kv_heads + kv) * width + i;
                        made[0][query_at] += weight * f64::from(values[key_at]);
                        made[1][query_at] += slope * f64::from(keys[key_at]);
                        made[2][key_at] += slope * f64::from(queries[query_at]);
                        made[3][key_at] += weight * f64::from(gradient[query_at]);
                    }
                }
            }
        }
    }
    made
}
