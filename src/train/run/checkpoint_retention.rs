//! Which checkpoints a run writes, which of them it retains for the user, and which it removes.

use std::path::PathBuf;
use std::time::Duration;

use super::errors::{RunError, checkpoint_failed};
use super::{Run, Sink, checkpoint};
use crate::train::protocol::Progress;

/// Checkpoints of a run that are for resuming after a crash, beside those of the first steps and those
/// that are retained for the user.
const RESUME_POINTS: u64 = 10;

/// Where a micro-batch takes so long, each step is saved: an order to stop may not come through in the time
/// that the run has to end.
const LONG_MICRO_BATCH: Duration = Duration::from_secs(8);

/// Newest checkpoints that stay in the work folder: one may be torn.
const NEWEST_IN_WORK_DIR: usize = 2;

impl Run<'_> {
    /// Writes the checkpoint of this step where one is due: for the user by the plan or because the
    /// model is the best so far, else for resuming.
    pub(super) fn save(
        &mut self,
        step: u64,
        is_improvement: bool,
        sink: &mut Sink<'_>,
    ) -> Result<(), RunError> {
        let plan = &self.setup.plan;
        if plan.saves_after(step) || is_improvement {
            self.retain(step);
            let directory = self.write_checkpoint()?;
            self.announce(step, directory, sink);
        } else if is_resume_point(step, plan.total_steps) || self.slowest >= LONG_MICRO_BATCH {
            self.write_checkpoint()?;
        } else {
            return Ok(());
        }
        self.remove_old_checkpoints()
    }

    /// Writes the checkpoint of the current step; its folder.
    pub(super) fn write_checkpoint(&mut self) -> Result<PathBuf, RunError> {
        let Self { spec, setup, state, engine, .. } = self;
        checkpoint::write(&spec.work_dir, &**engine, &setup.trained_model(), state)
            .map_err(checkpoint_failed)
    }

    /// Retains the checkpoint of this step for the user, and evicts others for it. The best one always
    /// stays. With `n_checkpoints` those of the plan alone count, and others are evicted as soon as they are
    /// not the best any more.
    fn retain(&mut self, step: u64) {
        let plan = &self.setup.plan;
        let limit = plan.hyperparameters.save_total_limit as usize;
        let counts =
            |step: u64| plan.hyperparameters.n_checkpoints.is_none() || plan.saves_after(step);
        let best = self.state.early_stopping.best.map(|best| best.step);
        let retained = &mut self.state.retained;
        retained.push(step);
        let counted = retained.iter().filter(|step| counts(**step)).count();
        let surplus = counted.saturating_sub(limit.max(1));
        let mut rank = 0;
        retained.retain(|step| {
            rank += usize::from(counts(*step));
            (counts(*step) && rank > surplus) || Some(*step) == best
        });
    }

    /// Says that the checkpoint of `step` lies in `directory` for the supervisor to publish.
    pub(super) fn announce(&mut self, step: u64, directory: PathBuf, sink: &mut Sink<'_>) {
        let Some(metrics) = self.state.metrics.get(step as usize - 1).cloned() else {
            return;
        };
        self.unpublished.insert(step);
        let (retained, through) = (self.state.retained.clone(), self.state.step);
        sink(Progress::Checkpoint { metrics, directory, retained, through });
    }

    /// Removes checkpoints from the work folder, but the newest, the best, and those that are not
    /// published yet.
    fn remove_old_checkpoints(&self) -> Result<(), RunError> {
        let work_dir = &self.spec.work_dir;
        let best = self.state.early_stopping.best.map(|best| best.step);
        let steps = checkpoint::steps(work_dir).map_err(checkpoint_failed)?;
        let passed = steps.into_iter().filter(|step| *step <= self.state.step);
        for step in passed.skip(NEWEST_IN_WORK_DIR) {
            if Some(step) != best && !self.unpublished.contains(&step) {
                checkpoint::remove(work_dir, step).map_err(checkpoint_failed)?;
            }
        }
        Ok(())
    }
}

/// Whether a step is saved for resuming: so many of a run, and the first steps at growing intervals,
/// so that a run that is disturbed early makes progress too.
fn is_resume_point(step: u64, total: u64) -> bool {
    step.is_power_of_two() || step.is_multiple_of(total.div_ceil(RESUME_POINTS))
}
