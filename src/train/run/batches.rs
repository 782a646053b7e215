//! Which examples belong to a step: a random order for each epoch, cut into batches.

use super::plan::Plan;
use crate::train::rng::permutation;

/// The order of the examples, an epoch at a time. It follows from the seed and the epoch alone, so that a
/// resumed run needs no state of it.
pub(super) struct BatchOrder {
    seed: u64,
    steps_per_epoch: u64,
    batch_size: usize,
    examples: usize,
    /// The epoch that `order` belongs to; none before the first step.
    epoch: Option<u64>,
    order: Vec<usize>,
}

impl BatchOrder {
    /// Of a run over so many training examples.
    pub(super) fn new(seed: u32, plan: &Plan, examples: usize) -> Self {
        Self {
            seed: u64::from(seed),
            steps_per_epoch: plan.steps_per_epoch,
            batch_size: plan.hyperparameters.batch_size as usize,
            examples,
            epoch: None,
            order: Vec::new(),
        }
    }

    /// The examples of optimiser step `step` (from 1), by index.
    pub(super) fn of(&mut self, step: u64) -> Vec<usize> {
        let epoch = (step - 1) / self.steps_per_epoch;
        if self.epoch != Some(epoch) {
            self.order = permutation(self.seed, "examples", epoch, self.examples);
            self.epoch = Some(epoch);
        }
        let first = ((step - 1) % self.steps_per_epoch) as usize * self.batch_size;
        self.order[first..(first + self.batch_size).min(self.examples)].to_vec()
    }
}
