//! Cross entropy over rows of logits, forward and backward in one pass.

use rayon::prelude::*;

use crate::train::backend::RowLoss;
use crate::train::backend::cpu::isa::Isa;
use crate::train::backend::cpu::vector;

/// What the backward pass needs.
pub struct Backward<'a> {
    /// The gradient is that of Σ factors\[row\] · loss\[row\].
    pub factors: &'a [f32],
    /// Factor of each row of logits that makes it that gradient. The caller applies it behind the head,
    /// where rows are much shorter.
    pub scales: &'a mut [f32],
}

/// Cross entropy of each row of `logits` (`[rows, vocabulary]`) against its target. With `backward`
/// the logits become their gradient except for a factor of each row, through the soft cap where there is
/// one; without it they stay as they are, capped.
pub fn cross_entropy(
    isa: Isa,
    logits: &mut [f32],
    targets: &[u32],
    soft_cap: Option<f32>,
    backward: Option<Backward<'_>>,
    losses: &mut [RowLoss],
) {
    let vocabulary = logits.len() / targets.len().max(1);
    let rows = logits.par_chunks_exact_mut(vocabulary.max(1));
    let rows = rows.zip(targets).zip(losses);
    match backward {
        None => rows.for_each(|((row, target), loss)| {
            if let Some(cap) = soft_cap {
                vector::soft_cap(isa, row, cap);
            }
            let (most, at_target) = max_and_target(isa, row, *target as usize, loss);
            loss.loss = most + sum_of_exp(isa, row, most).ln() - at_target;
        }),
        Some(Backward { factors, scales }) => {
            rows.zip(factors).zip(scales).for_each(|((((row, target), loss), factor), scale)| {
                if let Some(cap) = soft_cap {
                    vector::soft_cap(isa, row, cap);
                }
                let target = *target as usize;
                let (most, at_target) = max_and_target(isa, row, target, loss);
                // The softmax without its division by the sum, minus one at the target.
                let (sum, cap_derivative) = match soft_cap {
                    None => (vector::exp_and_sum(isa, row, 1.0, most), 1.0),
                    Some(cap) => {
                        let tanh = at_target / cap;
                        (exp_sum_and_derivative(isa, row, most, cap), 1.0 - tanh * tanh)
                    }
                };
                row[target] -= sum * cap_derivative;
                loss.loss = most + sum.ln() - at_target;
                *scale = factor / sum;
            });
        }
    }
}

/// The largest logit and the target's; sets whether the target is the largest.
fn max_and_target(isa: Isa, row: &[f32], target: usize, loss: &mut RowLoss) -> (f32, f32) {
    let (most, at_target) = (vector::maximum(isa, row), row[target]);
    loss.correct = at_target == most && row.iter().position(|x| *x == most) == Some(target);
    (most, at_target)
}

vector::for_each_isa! {
    /// Σ e^(x - most).
    pub fn sum_of_exp(isa, values: &[f32], most: f32) -> f32 {
        let mut lanes = [0.0f32; 16];
        let (blocks, rest) = values.as_chunks::<16>();
        for block in blocks {
            for (lane, value) in lanes.iter_mut().zip(block) {
                *lane += vector::exp(value - most);
            }
        }
        for (lane, value) in lanes.iter_mut().zip(rest) {
            *lane += vector::exp(value - most);
        }
        vector::add_lanes(lanes)
    }
}

vector::for_each_isa! {
    /// x becomes e^(x - most) times the soft cap's derivative 1 - (x / cap)²; Σ e^(x - most).
    pub fn exp_sum_and_derivative(isa, values: &mut [f32], most: f32, cap: f32) -> f32 {
        let mut lanes = [0.0f32; 16];
        for block in values.chunks_mut(16) {
            for (lane, value) in lanes.iter_mut().zip(block) {
                let (power, tanh) = (vector::exp(*value - most), *value / cap);
                *lane += power;
                *value = power * (1.0 - tanh * tanh);
            }
        }
        vector::add_lanes(lanes)
    }
}
