//! The time left of a run (ETA).

use std::time::Instant;

use super::Run;
use super::objective::Objective;

/// Floating-point operations over a text, and how many of them a cached output of the frozen blocks
/// spares.
#[derive(Debug, Clone, Copy, Default)]
struct Flops {
    all: f64,
    frozen: f64,
}

/// Time left, from the floating-point operations that this process has done, the time they took
/// (evaluations and checkpoints among it), and the operations that are left.
pub(super) struct Eta {
    began: Instant,
    done: f64,
    left: f64,
    /// Of a training step over each example.
    examples: Vec<Flops>,
    /// Of one evaluation of the validation file.
    evaluation: Flops,
    cached: CachedTexts,
}

impl Run<'_> {
    /// The time left, as training begins or resumes; as if it did not stop early.
    pub(super) fn eta(&mut self) -> Eta {
        let training = (0..self.training.len()).map(|index| {
            let (all, frozen) = self.training.flops(index);
            Flops { all, frozen }
        });
        let mut evaluation = Flops::default();
        if let Some(validation) = &self.validation {
            (evaluation.all, evaluation.frozen) = validation.evaluation_flops();
        }
        let objectives = [Some(&self.training), self.validation.as_ref()];
        let tokens = objectives.into_iter().flatten().map(Objective::all_tokens).sum();
        let has_seen = self.training.is_preferences();
        let room = self.engine.frozen_cache().capacity;
        let mut eta = Eta {
            began: Instant::now(),
            done: 0.0,
            left: 0.0,
            examples: training.collect(),
            evaluation,
            cached: CachedTexts::new(room, tokens, self.training.len(), has_seen),
        };
        let mut cached = eta.cached.clone();
        for step in self.state.step + 1..=self.setup.plan.total_steps {
            eta.left += cached.step(&eta.examples, &self.batches.of(step));
            if self.setup.plan.evaluates_after(step) {
                eta.left += cached.evaluation(eta.evaluation);
            }
        }
        eta
    }
}

impl Eta {
    /// Takes in a step that is done, and its evaluation.
    pub(super) fn step_done(&mut self, batch: &[usize], has_evaluated: bool) {
        let mut flops = self.cached.step(&self.examples, batch);
        if has_evaluated {
            flops += self.cached.evaluation(self.evaluation);
        }
        self.done += flops;
        self.left = (self.left - flops).max(0.0);
    }

    /// What the rest takes at the speed so far.
    pub(super) fn seconds_left(&self) -> f64 {
        self.left * self.began.elapsed().as_secs_f64() / self.done.max(1.0)
    }
}

/// Over which texts the frozen blocks need not run again in this process.
#[derive(Debug, Clone)]
struct CachedTexts {
    /// Whether the cache has room for all texts. Where it does not, none counts.
    fits: bool,
    /// Whether each training example has been seen.
    examples: Vec<bool>,
    validation: bool,
}

impl CachedTexts {
    /// Of a run over so many examples, with `room` for tokens of which all its texts have `tokens`;
    /// `has_seen` says whether each text has been seen before the first step.
    fn new(room: u64, tokens: usize, examples: usize, has_seen: bool) -> Self {
        let fits = tokens as u64 <= room;
        let has_seen = has_seen && fits;
        Self { fits, examples: vec![has_seen; examples], validation: has_seen }
    }

    /// Sees an example; whether it was cached before.
    fn sees(&mut self, index: usize) -> bool {
        std::mem::replace(&mut self.examples[index], self.fits)
    }

    /// The same of the validation file.
    fn sees_validation(&mut self) -> bool {
        std::mem::replace(&mut self.validation, self.fits)
    }

    /// Operations of a training step over a batch, which is seen then.
    fn step(&mut self, examples: &[Flops], batch: &[usize]) -> f64 {
        let flops = |index: &usize| {
            let spared = if self.sees(*index) { examples[*index].frozen } else { 0.0 };
            examples[*index].all - spared
        };
        batch.iter().map(flops).sum()
    }

    /// Operations of an evaluation, whose texts are seen then.
    fn evaluation(&mut self, flops: Flops) -> f64 {
        if self.sees_validation() { flops.all - flops.frozen } else { flops.all }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_cached_is_what_has_been_seen_where_all_fits() {
        let mut cached = CachedTexts::new(100, 100, 2, false);
        assert_eq!([cached.sees(1), cached.sees(1), cached.sees(0)], [false, true, false]);
        assert_eq!([cached.sees_validation(), cached.sees_validation()], [false, true]);
        let mut references = CachedTexts::new(100, 100, 2, true);
        assert!(references.sees(1) && references.sees_validation());
        for has_seen in [false, true] {
            let mut small = CachedTexts::new(99, 100, 2, has_seen);
            assert_eq!([small.sees(1), small.sees(1), small.sees_validation()], [false; 3]);
        }
    }
}
