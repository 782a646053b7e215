//! PackedMatrix matrices and adapted layers.

use std::sync::Arc;

use proptest::prelude::*;

use super::{difference, levels, noise, wide};
use crate::train::backend::cpu::buffer_pool::{BufferPool, CpuMatrix};
use crate::train::backend::cpu::gemm::packed_matrix::PackedMatrix;
use crate::train::backend::cpu::gemm::tile::AccumulateMode;
use crate::train::backend::cpu::isa::Isa;
use crate::train::backend::cpu::layers::grouped_lora::{self, BaseLinear, PackedLoraGroup};
use crate::train::backend::cpu::layers::linear::{
    self, LinearOutput, MatrixView, PackedLinear, PackedLora,
};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn adapted_layers_equal_plain_sums_on_any_shape(
        rows in 1usize..300, inputs in 1usize..70,
        outputs in prop::collection::vec(1usize..120, 1..4), rank in 1usize..20,
        has_weight in any::<bool>(), has_pair in any::<bool>(), seed in 0u64..1000,
    ) {
        let has_pair = has_pair || !has_weight;
        let case = AdaptedCase::new(rows, inputs, &outputs, [has_weight, has_pair], rank, seed);
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
        let pool = Arc::new(BufferPool::default());
        let values = noise(outputs * inputs, seed);
        let transposed: Vec<f32> =
            (0..inputs * outputs).map(|i| values[i % outputs * inputs + i / outputs]).collect();
        for isa in levels() {
            let tolerance = if isa == Isa::Bf16 { 0.004 } else { 0.0 };
            let of_rows = PackedMatrix::pack(isa, &pool, &values, outputs, inputs);
            let of_columns = PackedMatrix::pack_transposed(isa, &pool, &transposed, outputs, inputs);
            for (output, want) in values.chunks_exact(inputs).enumerate() {
                let mut rows = [vec![0.0; inputs], vec![0.0; inputs]];
                of_rows.read_row(output, &mut rows[0]);
                of_columns.read_row(output, &mut rows[1]);
                prop_assert_eq!(&rows[0], &rows[1]);
                prop_assert!(difference(&rows[0], &wide(want)) <= tolerance);
            }
        }
    }
}

/// Layers of one input, what they should come to, and their gradients.
struct AdaptedCase {
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

impl AdaptedCase {
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
        let pool = Arc::new(BufferPool::default());
        let matrix = |values: &[f32], columns: usize| -> CpuMatrix {
            let mut made = pool.acquire(values.len() / columns, columns);
            made.values_mut().copy_from_slice(values);
            made
        };
        let x = MatrixView { values: &self.x, columns: inputs };
        let mut off = Vec::new();

        let mut packed = Vec::new();
        for [weight, a, b, ..] in &self.layers {
            let outputs = b.len() / rank;
            packed.push((
                PackedMatrix::pack(isa, &pool, weight, outputs, inputs),
                PackedMatrix::pack_transposed(isa, &pool, weight, inputs, outputs),
                matrix(a, inputs),
                matrix(b, rank),
            ));
        }
        let mut results: Vec<[Vec<f32>; 2]> = self
            .layers
            .iter()
            .map(|layer| [vec![0.5; rows * layer[3].len()], vec![0.0; rows * rank]])
            .collect();
        let layers: Vec<PackedLinear<'_>> = (packed.iter().zip(&self.layers))
            .map(|((forward, _, a, b), layer)| PackedLinear {
                weight: has_weight.then_some(forward),
                bias: has_weight.then_some(&layer[3][..]),
                pair: has_pair.then(|| PackedLora::forward(isa, &pool, a, b, Self::SCALE)),
            })
            .collect();
        let mut into: Vec<LinearOutput<'_>> =
            results.iter_mut().map(|[y, inner]| LinearOutput { y, inner }).collect();
        linear::forward(isa, x, &layers, AccumulateMode::AddScaled(1.0), &mut into);
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

        let gradients: Vec<MatrixView<'_>> = (self.layers.iter())
            .map(|layer| MatrixView { values: &layer[4], columns: layer[3].len() })
            .collect();
        let layers: Vec<PackedLinear<'_>> = (packed.iter())
            .map(|(_, backward, a, b)| PackedLinear {
                weight: has_weight.then_some(backward),
                bias: None,
                pair: has_pair.then(|| PackedLora::backward(isa, &pool, a, b, Self::SCALE)),
            })
            .collect();
        let mut into = vec![0.25f32; self.x.len()];
        let mut inner: Vec<CpuMatrix> = packed.iter().map(|_| pool.acquire(rows, rank)).collect();
        let mut made: Vec<&mut [f32]> = inner.iter_mut().map(CpuMatrix::values_mut).collect();
        linear::backward(
            isa,
            &gradients,
            &layers,
            AccumulateMode::AddScaled(1.0),
            Some(&mut into),
            &mut made,
        );
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

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn half_the_memory_changes_no_product(
        rows in 1usize..40, half_inputs in 1usize..700, outputs in 1usize..120, seed in 0u64..1000,
    ) {
        let (pool, inputs) = (Arc::new(BufferPool::default()), 2 * half_inputs);
        let x = noise(rows * inputs, seed);
        let rounded = |value: &f32| half::bf16::from_f32(*value).to_f32();
        let values: Vec<f32> = noise(outputs * inputs, seed + 1).iter().map(rounded).collect();
        for isa in levels().filter(|isa| *isa != Isa::Bf16) {
            let whole = PackedMatrix::pack(isa, &pool, &values, outputs, inputs);
            let in_bf16 = PackedMatrix::pack_in_bf16(isa, &pool, &values, outputs, inputs);
            let in_bf16 = in_bf16.expect("bfloat16 holds all of them");
            prop_assert_eq!(2 * in_bf16.memory_use(), whole.memory_use());
            let product = |packed: &PackedMatrix| {
                let mut y = vec![0.0; rows * outputs];
                let x = MatrixView { values: &x, columns: inputs };
                let layers = [BaseLinear { weight: packed, bias: None }];
                grouped_lora::forward(isa, &pool, x, &layers, &[], &mut [&mut y]);
                y.into_iter().map(f32::to_bits).collect::<Vec<u32>>()
            };
            prop_assert!(product(&in_bf16) == product(&whole), "{:?}", isa);
            let mut row = vec![0.0; inputs];
            in_bf16.read_row(outputs - 1, &mut row);
            prop_assert_eq!(&row[..], &values[(outputs - 1) * inputs..]);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(30))]

    #[test]
    fn what_answers_computes_to_the_bit_what_was_trained(
        before in 0usize..4, rows in 1usize..200, after in 0usize..4,
        inputs in prop_oneof![1usize..70, Just(2048), 2049usize..4400], outputs in 1usize..120,
        rank in 1usize..20, seed in 0u64..1000,
    ) {
        let pool = Arc::new(BufferPool::default());
        let all = before + rows + after;
        let x = noise(all * inputs, seed);
        let weight = noise(outputs * inputs, seed + 1);
        let matrix = |seed, rows, columns| {
            let mut made = pool.acquire(rows, columns);
            made.values_mut().copy_from_slice(&noise(rows * columns, seed));
            made
        };
        let (a, b) = (matrix(seed + 2, rank, inputs), matrix(seed + 3, outputs, rank));
        for isa in levels() {
            let weight = PackedMatrix::pack(isa, &pool, &weight, outputs, inputs);
            let pair = || PackedLora::forward(isa, &pool, &a, &b, 1.5);
            let own = before..before + rows;
            let mut trained = vec![0.0; rows * outputs];
            let mut inner = vec![0.0; rows * rank];
            let x_own = MatrixView { values: &x[own.start * inputs..own.end * inputs], columns: inputs };
            let layers = [PackedLinear { weight: Some(&weight), bias: None, pair: Some(pair()) }];
            let mut results = [LinearOutput { y: &mut trained, inner: &mut inner }];
            linear::forward(isa, x_own, &layers, AccumulateMode::Overwrite, &mut results);

            let mut answered = vec![0.0; all * outputs];
            let attached = pair();
            let groups = [PackedLoraGroup { rows: own.clone(), pairs: [Some(&attached), None, None] }];
            let layers = [BaseLinear { weight: &weight, bias: None }];
            let x = MatrixView { values: &x, columns: inputs };
            grouped_lora::forward(isa, &pool, x, &layers, &groups, &mut [&mut answered]);
            prop_assert!(answered[own.start * outputs..own.end * outputs] == trained, "{:?}", isa);
        }
    }
}

#[test]
fn what_bfloat16_does_not_hold_keeps_its_memory() {
    let pool = Arc::new(BufferPool::default());
    let mut values = vec![0.5; 8];
    assert!(PackedMatrix::pack_in_bf16(Isa::Portable, &pool, &values, 2, 4).is_some());
    assert!(PackedMatrix::pack_in_bf16(Isa::Portable, &pool, &values[..6], 2, 3).is_none());
    values[7] = 0.1;
    assert!(PackedMatrix::pack_in_bf16(Isa::Portable, &pool, &values, 2, 4).is_none());
}
