//! Early stopping: which evaluation is the best so far, and when training ends.

use serde::{Deserialize, Serialize};

/// One evaluation of the whole validation file.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct EvalResult {
    /// Optimiser steps done.
    pub step: u64,
    /// Mean loss over the whole validation file.
    pub loss: f64,
    /// Mean of the training losses of the steps since the evaluation before.
    pub train_loss: f64,
}

/// All evaluations of a run, and the best of them.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct EarlyStopping {
    /// In order.
    #[serde(rename = "looks")]
    pub evaluations: Vec<EvalResult>,
    /// The one that the next must improve on.
    pub best: Option<EvalResult>,
    /// Evaluations since.
    pub without_improvement: u32,
}

impl EarlyStopping {
    /// Adds an evaluation; whether it is an improvement: the loss has fallen by at least `threshold`
    /// below the best so far.
    pub fn add(&mut self, result: EvalResult, threshold: f64) -> bool {
        self.evaluations.push(result);
        if self.best.is_none_or(|best| result.loss <= best.loss - threshold) {
            self.best = Some(result);
            self.without_improvement = 0;
            return true;
        }
        self.without_improvement += 1;
        false
    }

    /// Whether training should end: `patience` evaluations in a row without improvement; zero is
    /// endless.
    pub fn is_over(&self, patience: u32) -> bool {
        patience > 0 && self.without_improvement >= patience
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The step of the best evaluation, and how many evaluations there were before the end.
    fn run(losses: &[f64], threshold: f64, patience: u32) -> (u64, usize) {
        let mut early_stopping = EarlyStopping::default();
        for (index, loss) in losses.iter().enumerate() {
            let step = index as u64 + 1;
            early_stopping.add(EvalResult { step, loss: *loss, train_loss: 1.0 }, threshold);
            if early_stopping.is_over(patience) {
                break;
            }
        }
        (early_stopping.best.expect("an evaluation").step, early_stopping.evaluations.len())
    }

    #[test]
    fn the_best_evaluation_stands_and_patience_ends_the_run() {
        assert_eq!(run(&[3.0, 2.0, 1.0], 0.001, 2), (3, 3));
        assert_eq!(run(&[1.0, 2.0, 2.0, 0.5], 0.001, 2), (1, 3));
        assert_eq!(run(&[1.0, 2.0, 0.9, 2.0, 2.0, 0.1], 0.001, 2), (3, 5));
        assert_eq!(run(&[1.0, 2.0, 2.0, 2.0, 0.5], 0.001, 0), (5, 5));
    }

    #[test]
    fn a_fall_below_the_threshold_is_no_improvement_though_small_falls_add_up() {
        assert_eq!(run(&[1.0, 0.9995, 0.9991], 0.001, 0), (1, 3));
        assert_eq!(run(&[1.0, 0.9995, 0.999], 0.001, 0), (3, 3));
        assert_eq!(run(&[1.0, 1.0], 0.0, 0), (2, 2));
    }
}
