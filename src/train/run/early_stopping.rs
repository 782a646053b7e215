//! Looks at the validation file: which checkpoint is the best so far, and when to stop early.

use serde::{Deserialize, Serialize};

/// One look at the whole validation file.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Look {
    /// Optimiser steps done.
    pub step: u64,
    /// Mean loss over the whole validation file.
    pub loss: f64,
    /// Mean of the training losses of the steps since the look before.
    pub train_loss: f64,
}

/// All looks of a run, and what they have come to.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Watch {
    /// In order.
    pub looks: Vec<Look>,
    /// The one that the next must be better than.
    pub best: Option<Look>,
    /// Looks since.
    pub without_improvement: u32,
}

impl Watch {
    /// Takes one more look; says whether it is an improvement: the loss has fallen by at least
    /// `threshold` below the best so far.
    pub fn look(&mut self, look: Look, threshold: f64) -> bool {
        self.looks.push(look);
        if self.best.is_none_or(|best| look.loss <= best.loss - threshold) {
            self.best = Some(look);
            self.without_improvement = 0;
            return true;
        }
        self.without_improvement += 1;
        false
    }

    /// Whether training should end: `patience` looks in a row without improvement; zero is endless.
    pub fn is_over(&self, patience: u32) -> bool {
        patience > 0 && self.without_improvement >= patience
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The step of the best look, and how many looks were taken before the end.
    fn watch(losses: &[f64], threshold: f64, patience: u32) -> (u64, usize) {
        let mut watch = Watch::default();
        for (index, loss) in losses.iter().enumerate() {
            let step = index as u64 + 1;
            watch.look(Look { step, loss: *loss, train_loss: 1.0 }, threshold);
            if watch.is_over(patience) {
                break;
            }
        }
        (watch.best.expect("a look").step, watch.looks.len())
    }

    #[test]
    fn the_best_look_is_kept_and_patience_ends_the_run() {
        assert_eq!(watch(&[3.0, 2.0, 1.0], 0.001, 2), (3, 3));
        assert_eq!(watch(&[1.0, 2.0, 2.0, 0.5], 0.001, 2), (1, 3));
        assert_eq!(watch(&[1.0, 2.0, 0.9, 2.0, 2.0, 0.1], 0.001, 2), (3, 5));
        assert_eq!(watch(&[1.0, 2.0, 2.0, 2.0, 0.5], 0.001, 0), (5, 5));
    }

    #[test]
    fn a_fall_below_the_threshold_is_no_improvement_though_small_falls_add_up() {
        assert_eq!(watch(&[1.0, 0.9995, 0.9991], 0.001, 0), (1, 3));
        assert_eq!(watch(&[1.0, 0.9995, 0.999], 0.001, 0), (3, 3));
        assert_eq!(watch(&[1.0, 1.0], 0.0, 0), (2, 2));
    }
}
