//! Direct preference optimisation (Rafailov et al. 2023): of two answers to one prompt, the
//! preferred one becomes more likely, relative to the base model.
//!
//! The loss of a pair is -ln σ(β·((π_c - ref_c) - (π_r - ref_r))), with log-probabilities π of the
//! model and ref of the base without adapter, summed over each answer's tokens. Called by the engine.

use std::ops::Range;

use crate::train::backend::RowLoss;
use crate::train::data::sequence::Sequence;

/// Two answers to one prompt.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PreferencePair<'a> {
    /// The prompt with the preferred answer, whose tokens are supervised.
    pub chosen: &'a Sequence,
    /// The prompt with the other answer.
    pub rejected: &'a Sequence,
    /// Log-probabilities of both answers under the base without adapter, in nats.
    pub reference: [f64; 2],
}

/// The rewards of one preference.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PreferenceRewards {
    /// Reward of the preferred answer, β·(π - ref).
    pub chosen_reward: f64,
    /// Reward of the other answer.
    pub rejected_reward: f64,
}

impl PreferenceRewards {
    /// How much larger the preferred answer's reward is.
    pub fn margin(&self) -> f64 {
        self.chosen_reward - self.rejected_reward
    }

    /// -ln σ(margin), which does not overflow on either side.
    pub fn loss(&self) -> f64 {
        (-self.margin()).max(0.0) + (-self.margin().abs()).exp().ln_1p()
    }

    /// σ(-margin): the weight of the pair in the gradient.
    fn gradient_weight(&self) -> f64 {
        1.0 / (1.0 + self.margin().exp())
    }
}

/// The two sequences of each preference.
pub(super) fn sequences<'a>(batch: &[PreferencePair<'a>]) -> Vec<[&'a Sequence; 2]> {
    batch.iter().map(|preference| [preference.chosen, preference.rejected]).collect()
}

/// Log-probability of the rows' targets, in nats.
pub(super) fn log_probability(rows: &[RowLoss]) -> f64 {
    -rows.iter().map(|row| f64::from(row.loss)).sum::<f64>()
}

/// The rewards of `batch`. `loss_ranges` has the ranges of `losses` of its chosen answer, its rejected answer, then
/// those of the next pair, and so on.
pub(super) fn rewards(
    batch: &[PreferencePair<'_>],
    loss_ranges: &[Range<usize>],
    losses: &[RowLoss],
    beta: f64,
) -> Vec<PreferenceRewards> {
    let mut made = Vec::with_capacity(batch.len());
    for (preference, ranges) in batch.iter().zip(loss_ranges.as_chunks::<2>().0) {
        let [chosen, rejected] = [0, 1].map(|answer| {
            let log_probability = log_probability(&losses[ranges[answer].clone()]);
            beta * (log_probability - preference.reference[answer])
        });
        made.push(PreferenceRewards { chosen_reward: chosen, rejected_reward: rejected });
    }
    made
}

/// Derivative of (sum of the preferences' losses / `total`) with respect to each row's cross entropy:
/// σ(-margin)·β / total for rows of the preferred answer, its opposite for rows of the other.
pub(super) fn factors(
    rewards: &[PreferenceRewards],
    loss_ranges: &[Range<usize>],
    rows: usize,
    beta: f64,
    total: u64,
) -> Vec<f32> {
    let mut factors = vec![0.0; rows];
    for (reward, ranges) in rewards.iter().zip(loss_ranges.as_chunks::<2>().0) {
        let factor = (reward.gradient_weight() * beta / total.max(1) as f64) as f32;
        factors[ranges[0].clone()].fill(factor);
        factors[ranges[1].clone()].fill(-factor);
    }
    factors
}
