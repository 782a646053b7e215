//! Attention.

use std::sync::Arc;

use proptest::prelude::*;

use super::{difference, levels, noise};
use crate::train::backend::cpu::attention::backward::{self, AttentionGradients, ForwardResult};
use crate::train::backend::cpu::attention::{self, AttentionInputs};
use crate::train::backend::cpu::buffer_pool::BufferPool;
use crate::train::backend::cpu::isa::Isa;
use crate::train::backend::{AttentionShape, Segment};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

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
        let inputs = AttentionInputs { queries: &queries, keys: &keys, values: &values };
        for isa in levels() {
            let mut output = vec![9.0; tokens * query_width];
            let mut log_sums = vec![0.0; tokens * shape.heads];
            let pool = Arc::new(BufferPool::default());
            let (into, sums) = (&mut output, &mut log_sums);
            attention::forward::forward(isa, &pool, &inputs, &segments, &shape, into, sums);
            let mut made = [query_width, kv_width, kv_width].map(|width| vec![9.0; tokens * width]);
            let [queries, keys, values] = &mut made;
            let gradients = AttentionGradients { queries, keys, values };
            let forward =
                ForwardResult { output: &output, log_sums: &log_sums, gradient: &gradient };
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
    let inputs = AttentionInputs {
        queries: &values,
        keys: &values[..tokens * 48],
        values: &values[..tokens * 48],
    };
    for isa in levels() {
        for window in [None, Some(37)] {
            let shape = AttentionShape { window, ..shape };
            let run = |segments: &[Segment]| {
                let (mut output, mut sums) = (vec![0.0; tokens * 96], vec![0.0; tokens * 4]);
                let pool = Arc::new(BufferPool::default());
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
