//! Direct preference optimisation (Rafailov et al. 2023): of two answers to one prompt, the preferred
//! one shall become more likely, against what the base model gives them.
//!
//! The loss of a pair is -ln σ(β·((π_c - ref_c) - (π_r - ref_r))), with log-probabilities π of the
//! model and ref of the base without adapter, summed over each answer's tokens. Called by the engine.

use std::ops::Range;

use crate::train::backend::RowLoss;
use crate::train::data::sequence::Sequence;

/// Two answers to one prompt.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Preference<'a> {
    /// The prompt with the preferred answer; the answer bears loss.
    pub chosen: &'a Sequence,
    /// The prompt with the other answer.
    pub rejected: &'a Sequence,
    /// Log-probabilities of both answers under the base without adapter, in nats.
    pub reference: [f64; 2],
}

/// What one preference came to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PreferenceOutcome {
    /// Reward of the preferred answer, β·(π - ref).
    pub chosen_reward: f64,
    /// Reward of the other answer.
    pub rejected_reward: f64,
}

impl PreferenceOutcome {
    /// How much larger the preferred answer's reward is.
    pub fn margin(&self) -> f64 {
        self.chosen_reward - self.rejected_reward
    }

    /// -ln σ(margin), which does not overflow on either side.
    pub fn loss(&self) -> f64 {
        (-self.margin()).max(0.0) + (-self.margin().abs()).exp().ln_1p()
    }

    /// σ(-margin): how far the loss still pulls.
    fn pull(&self) -> f64 {
        1.0 / (1.0 + self.margin().exp())
    }
}

/// The two sequences of each preference.
pub(super) fn sequences<'a>(batch: &[Preference<'a>]) -> Vec<[&'a Sequence; 2]> {
    batch.iter().map(|preference| [preference.chosen, preference.rejected]).collect()
}

/// Log-probability of the rows' targets, in nats.
pub(super) fn log_probability(rows: &[RowLoss]) -> f64 {
    -rows.iter().map(|row| f64::from(row.loss)).sum::<f64>()
}

/// What each of `batch` came to. `owned` are the parts of `losses` that belong to its chosen answer,
/// its rejected answer, those of the next one, and so on.
pub(super) fn outcomes(
    batch: &[Preference<'_>],
    owned: &[Range<usize>],
    losses: &[RowLoss],
    beta: f64,
) -> Vec<PreferenceOutcome> {
    let mut made = Vec::with_capacity(batch.len());
    for (preference, owned) in batch.iter().zip(owned.as_chunks::<2>().0) {
        let [chosen, rejected] = [0, 1].map(|answer| {
            let log_probability = log_probability(&losses[owned[answer].clone()]);
            beta * (log_probability - preference.reference[answer])
        });
        made.push(PreferenceOutcome { chosen_reward: chosen, rejected_reward: rejected });
    }
    made
}

/// Derivative of (sum of the preferences' losses / `total`) with respect to each row's cross entropy:
/// σ(-margin)·β / total for rows of the preferred answer, its opposite for rows of the other.
pub(super) fn factors(
    outcomes: &[PreferenceOutcome],
    owned: &[Range<usize>],
    rows: usize,
    beta: f64,
    total: u64,
) -> Vec<f32> {
    let mut factors = vec![0.0; rows];
    for (outcome, owned) in outcomes.iter().zip(owned.as_chunks::<2>().0) {
        let pull = (outcome.pull() * beta / total.max(1) as f64) as f32;
        factors[owned[0].clone()].fill(pull);
        factors[owned[1].clone()].fill(-pull);
    }
    factors
}
