//! The rules of the diagnostics: what counts as divergence, overfitting, collapse and forgetting, each with
//! its numbers.

use serde::{Deserialize, Serialize};

use super::early_stopping::EarlyStopping;
use crate::domain::job::StepMetrics;

/// What can go wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FindingKind {
    /// The training loss is above that of guessing.
    Divergence,
    /// The validation loss rises while the training loss falls.
    Overfitting,
    /// The model repeats itself.
    Collapse,
    /// The model has become worse at general text.
    Forgetting,
}

/// One finding, as an event says it and the report repeats it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Finding {
    /// What it is.
    #[serde(rename = "sign")]
    pub kind: FindingKind,
    /// Optimiser steps done.
    pub step: u64,
    /// A sentence with the numbers and what to do.
    pub message: String,
}

/// How far above the best the validation loss has to be for overfitting, in nats.
const OVERFITTING: f64 = 0.02;

/// How much the loss on general text has to rise for forgetting, in nats a token.
const FORGETTING: f64 = 0.5;

/// Length of the runs of tokens that are compared to see repetition.
const RUN: usize = 4;

/// Fewest tokens of an answer that can be judged for repetition.
const LONG_ENOUGH: usize = 24;

/// Share of different runs below which an answer repeats itself.
const DIFFERENT: f64 = 0.4;

/// A loss above that of guessing every token alike. `is_early` is the warm-up and the first half,
/// which an untrained model may well begin with.
pub fn divergence(metrics: &StepMetrics, guessing: f64, is_early: bool) -> Option<Finding> {
    if metrics.train_loss <= guessing || is_early {
        return None;
    }
    let message = format!(
        "divergence: the loss of step {} is {:.2}, above the {guessing:.2} of guessing every token \
         alike; lower the learning rate",
        metrics.step, metrics.train_loss
    );
    Some(Finding { kind: FindingKind::Divergence, step: metrics.step, message })
}

/// Two evaluations in a row clearly above the best, while the training loss is below what it was then.
pub fn overfitting(early_stopping: &EarlyStopping) -> Option<Finding> {
    let best = early_stopping.best?;
    let [.., before, last] = &early_stopping.evaluations[..] else {
        return None;
    };
    let is_above = |loss: f64| loss > best.loss + OVERFITTING;
    let is_after = before.step > best.step;
    if !is_after || !is_above(before.loss) || !is_above(last.loss) {
        return None;
    }
    if last.train_loss >= best.train_loss {
        return None;
    }
    let message = format!(
        "overfitting: the validation loss has risen from {:.3} at step {} to {:.3} at step {}, while \
         the training loss has fallen from {:.3} to {:.3}. The model of step {} stays the best; fewer \
         epochs, more examples, a lower learning rate or lora_dropout help",
        best.loss, best.step, last.loss, last.step, best.train_loss, last.train_loss, best.step
    );
    Some(Finding { kind: FindingKind::Overfitting, step: last.step, message })
}

/// Share of different runs of four tokens in an answer; `None` when it is too short to tell.
fn different_runs(answer: &[u32]) -> Option<f64> {
    if answer.len() < LONG_ENOUGH {
        return None;
    }
    let runs = answer.windows(RUN);
    let count = runs.len();
    let different: std::collections::BTreeSet<&[u32]> = runs.collect();
    Some(different.len() as f64 / count as f64)
}

/// Most of the greedy answers repeat themselves.
pub fn collapse(step: u64, answers: &[Vec<u32>]) -> Option<Finding> {
    let shares: Vec<f64> = answers.iter().filter_map(|answer| different_runs(answer)).collect();
    let repeating = shares.iter().filter(|share| **share < DIFFERENT).count();
    if 2 * repeating <= answers.len() {
        return None;
    }
    let worst = shares.iter().copied().fold(1.0, f64::min);
    let message = format!(
        "collapse: the model repeats itself, as its base does not: in {repeating} of {} greedy answers \
         to training prompts less than {:.0} % of all runs of {RUN} tokens are different, {:.0} % in \
         the worst; lower the learning rate or train fewer epochs",
        answers.len(),
        100.0 * DIFFERENT,
        100.0 * worst
    );
    Some(Finding { kind: FindingKind::Collapse, step, message })
}

/// The mean loss on general text has risen from `before` to `after`.
pub fn forgetting(step: u64, before: f64, after: f64) -> Option<Finding> {
    if after - before < FORGETTING {
        return None;
    }
    let message = format!(
        "forgetting: the loss on a small set of general texts has risen from {before:.3} to \
         {after:.3} nats a token; lower the learning rate, train fewer epochs or fewer blocks \
         (lora_layers), or mix general examples in"
    );
    Some(Finding { kind: FindingKind::Forgetting, step, message })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::run::early_stopping::EvalResult;

    #[test]
    fn overfitting_is_a_rising_validation_loss_under_a_falling_training_loss() {
        let of = |losses: &[(f64, f64)]| {
            let mut early_stopping = EarlyStopping::default();
            for (index, (loss, train_loss)) in losses.iter().enumerate() {
                let (step, loss, train_loss) = (10 * (index as u64 + 1), *loss, *train_loss);
                early_stopping.add(EvalResult { step, loss, train_loss }, 0.001);
            }
            overfitting(&early_stopping)
        };
        let finding = of(&[(2.0, 2.0), (1.5, 1.4), (1.6, 1.0), (1.8, 0.6)]).expect("it overfits");
        assert_eq!((finding.kind, finding.step), (FindingKind::Overfitting, 40));
        for number in ["1.500 at step 20", "1.800 at step 40", "from 1.400 to 0.600"] {
            assert!(finding.message.contains(number), "{}", finding.message);
        }
        assert_eq!(of(&[(2.0, 2.0), (1.5, 1.4), (1.6, 1.0)]), None, "once is chance");
        assert_eq!(of(&[(1.5, 1.4), (1.6, 1.5), (1.8, 1.6)]), None, "both rise");
        assert_eq!(of(&[(1.5, 1.4), (1.51, 1.0), (1.51, 0.6)]), None, "hardly");
    }

    #[test]
    fn answers_that_go_round_are_a_collapse_and_ordinary_ones_are_not() {
        let round: Vec<u32> = (0..48).map(|index| index % 3).collect();
        let ordinary: Vec<u32> = (0..48).collect();
        let short = vec![7; 10];
        assert!(collapse(5, &[round.clone(), round.clone(), ordinary.clone()]).is_some());
        assert_eq!(collapse(5, &[round.clone(), ordinary.clone(), ordinary]), None);
        assert_eq!(collapse(5, &[short.clone(), short, round]), None);
        assert_eq!(collapse(5, &[]), None);
    }

    #[test]
    fn divergence_and_forgetting_have_their_bounds() {
        let metrics = StepMetrics { step: 9, train_loss: 6.0, ..Default::default() };
        assert!(divergence(&metrics, 5.5, false).is_some_and(|it| it.message.contains("6.00")));
        assert_eq!(divergence(&metrics, 5.5, true), None);
        assert_eq!(divergence(&metrics, 6.5, false), None);
        assert!(forgetting(9, 3.0, 3.6).is_some_and(|it| it.message.contains("3.600")));
        assert_eq!(forgetting(9, 3.0, 3.4), None);
    }
}
