//! Cross entropy over rows of logits, forward and backward in one pass.

use rayon::prelude::*;

use super::isa::Isa;
use super::vector;
use crate::train::backend::RowLoss;

/// Cross entropy of each row of `logits` (`[rows, vocabulary]`) against its target. With
/// `factors`, one a row, the logits become the gradient of (factor · loss), through the soft cap
/// where there is one; without they are left as they are, capped.
pub fn cross_entropy(
    isa: Isa,
    logits: &mut [f32],
    targets: &[u32],
    soft_cap: Option<f32>,
    factors: Option<&[f32]>,
    losses: &mut [RowLoss],
) {
    let vocabulary = logits.len() / targets.len().max(1);
    let rows = logits.par_chunks_exact_mut(vocabulary.max(1));
    rows.zip(targets).zip(losses.par_iter_mut()).enumerate().for_each(|(at, one)| {
        let ((row, target), loss) = one;
        if let Some(cap) = soft_cap {
            vector::soft_cap(isa, row, cap);
        }
        let target = *target as usize;
        let most = vector::maximum(isa, row);
        let at_target = row[target];
        loss.correct = at_target == most && row.iter().position(|x| *x == most) == Some(target);
        let factor = factors.map(|factors| factors[at]);
        let sum = match (factor, soft_cap) {
            (None, _) | (_, Some(_)) => sum_of_exp(isa, row, most),
            (Some(_), None) => vector::exp_and_sum(isa, row, 1.0, most),
        };
        loss.loss = most + sum.ln() - at_target;
        let Some(factor) = factor else {
            return;
        };
        match soft_cap {
            None => vector::scale(isa, row, factor / sum),
            Some(cap) => capped_softmax_times(isa, row, most, factor / sum, cap),
        }
        let slope = soft_cap.map_or(1.0, |cap| 1.0 - (at_target / cap) * (at_target / cap));
        row[target] -= factor * slope;
    });
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
    /// x becomes factor · e^(x - most), times the soft cap's derivative 1 - (x / cap)².
    pub fn capped_softmax_times(isa, values: &mut [f32], most: f32, factor: f32, cap: f32) {
        for value in values {
            let bent = *value / cap;
            *value = factor * vector::exp(*value - most) * (1.0 - bent * bent);
        }
    }
}
