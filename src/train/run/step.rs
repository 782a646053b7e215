//! The parts of one optimiser step: gradients of its micro-batches, the update, its metrics.

use std::collections::BTreeMap;
use std::time::Instant;

use super::errors::{RunError, engine_failed, not_finite};
use super::eta::Eta;
use super::objective::LossStatistics;
use super::step_timer::StepTimer;
use super::{Controls, Run, Sink};
use crate::domain::job::StepMetrics;
use crate::train::backend::AdamWStep;
use crate::train::engine::MicroBatch;
use crate::train::protocol::Progress;

/// One update of what trains.
pub(super) struct Update {
    learning_rate: f64,
    /// Global norm of the gradients before clipping.
    grad_norm: f64,
}

impl Run<'_> {
    /// The step to do next, from 1; `None` when training is over, by its plan or by early stopping.
    /// Starts the timer of the step.
    pub(super) fn next_step(&mut self) -> Option<u64> {
        if !self.has_steps_left() {
            return None;
        }
        self.timer = StepTimer::start(self.yielding.waited);
        Some(self.state.step + 1)
    }

    pub(super) fn has_steps_left(&self) -> bool {
        self.state.step < self.setup.plan.total_steps && !self.stops_early()
    }

    /// Runs forward and backward over a batch, in micro-batches; `None` when the run was told to end between
    /// them. The gradients are those of the mean over the whole batch.
    pub(super) fn accumulate(
        &mut self,
        step: u64,
        batch: &[usize],
        controls: &mut Controls<'_>,
    ) -> Result<Option<LossStatistics>, RunError> {
        let mut part = MicroBatch::whole(step, self.training.units(batch));
        let mut losses: BTreeMap<usize, LossStatistics> = BTreeMap::new();
        for items in self.training.micro_batches(self.engine, batch) {
            if part.first > 0 && self.requested(controls).is_some() {
                return Ok(None);
            }
            let began = Instant::now();
            let made =
                self.training.accumulate(self.engine, &items, part).map_err(engine_failed)?;
            self.slowest = self.slowest.max(began.elapsed());
            for (item, one) in items.iter().zip(&made) {
                losses.entry(item.example).or_default().add(one);
            }
            part.first += items.len();
        }
        let mut sums = LossStatistics::default();
        for index in batch {
            let of_example = losses.remove(index).unwrap_or_default();
            self.state.example_losses[*index] = Some(of_example.mean_loss() as f32);
            sums.add(&of_example);
        }
        if !sums.loss.is_finite() {
            return Err(not_finite(step, "loss", self.lines_of(batch)));
        }
        Ok(Some(sums))
    }

    /// Clips the gradients and moves what trains by one AdamW step. The step's timer stops here.
    pub(super) fn clip_and_update(
        &mut self,
        step: u64,
        learning_rate: f64,
        batch: &[usize],
    ) -> Result<Update, RunError> {
        let values = &self.setup.plan.hyperparameters;
        let adamw = AdamWStep {
            learning_rate,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            weight_decay: values.weight_decay,
            clip: values.max_grad_norm,
            step,
        };
        let grad_norm = self.engine.step(&adamw).map_err(engine_failed)?;
        if !grad_norm.is_finite() {
            return Err(not_finite(step, "gradient", self.lines_of(batch)));
        }
        self.timer.stop(self.yielding.waited);
        Ok(Update { learning_rate, grad_norm })
    }

    /// Counts the step as done; its metrics.
    pub(super) fn metrics(
        &mut self,
        step: u64,
        batch: &[usize],
        losses: &LossStatistics,
        update: &Update,
    ) -> StepMetrics {
        self.state.step = step;
        self.state.trained_tokens += self.tokens_of(batch);
        StepMetrics {
            step,
            train_loss: losses.mean_loss(),
            train_mean_token_accuracy: losses.accuracy(),
            reward_margin: self.training.is_preferences().then(|| losses.mean_margin()),
            learning_rate: update.learning_rate,
            grad_norm: update.grad_norm,
            epoch: step as f64 / self.setup.plan.steps_per_epoch as f64,
            ..StepMetrics::default()
        }
    }

    /// Records the step's metrics and sends them with speed and time left.
    pub(super) fn log(
        &mut self,
        metrics: StepMetrics,
        batch: &[usize],
        eta: &mut Eta,
        sink: &mut Sink<'_>,
    ) {
        eta.step_done(batch, metrics.full_valid_loss.is_some());
        self.state.metrics.push(metrics.clone());
        sink(Progress::Step {
            metrics,
            tokens_per_second: self.timer.per_second(self.tokens_of(batch)),
            seconds_left: eta.seconds_left(),
            yielded_seconds: self.yielding.waited.as_secs_f64(),
        });
    }

    /// What follows a step whose weights have moved: evaluate → diagnose → log → checkpoint → stop. The run's
    /// last message when it is told to end; an evaluation that is broken off is done by the next trainer.
    pub(super) fn conclude_step(
        &mut self,
        mut metrics: StepMetrics,
        eta: &mut Eta,
        sink: &mut Sink<'_>,
        controls: &mut Controls<'_>,
    ) -> Result<Option<Progress>, RunError> {
        let step = metrics.step;
        let Some(is_improvement) = self.evaluate(&mut metrics, sink, controls)? else {
            self.state.unevaluated = Some(metrics);
            return self.stop().map(Some);
        };
        self.diagnose(&metrics, sink)?;
        let batch = self.batches.of(step);
        self.log(metrics, &batch, eta, sink);
        self.save(step, is_improvement, sink)?;
        self.stop_if_requested(controls)
    }

    fn tokens_of(&self, batch: &[usize]) -> u64 {
        batch.iter().map(|index| self.training.tokens(*index) as u64).sum()
    }

    /// Lines of the training file that the examples of a batch stand on.
    fn lines_of(&self, batch: &[usize]) -> Vec<u64> {
        let examples = &self.training.file().examples;
        batch.iter().map(|index| examples[*index].line).collect()
    }
}
