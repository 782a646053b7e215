//! Control messages: what the supervisor has asked for, and how a run stops.

use std::time::Instant;

use super::errors::RunError;
use super::{Controls, Run};
use crate::train::protocol::{Control, Progress};

impl Run<'_> {
    /// Stops the run where that is asked for and steps are left; the run's last message then.
    pub(super) fn stop_if_requested(
        &mut self,
        controls: &mut Controls<'_>,
    ) -> Result<Option<Progress>, RunError> {
        match self.has_steps_left() && self.requested(controls).is_some() {
            true => self.stop().map(Some),
            false => Ok(None),
        }
    }

    /// Stops the run after its last whole step, as was requested; its last message. Gradients of a step that
    /// is not whole are dropped: the weights have not moved in it.
    pub(super) fn stop(&mut self) -> Result<Progress, RunError> {
        let step = self.state.step;
        if self.requested == Some(Control::Cancel) {
            return Ok(Progress::Cancelled { step });
        }
        self.write_checkpoint()?;
        Ok(Progress::Stopped { step })
    }

    /// Reads all messages that have come, and waits while micro-batches are paused; the cancel or
    /// stop that is asked for.
    pub(super) fn requested(&mut self, controls: &mut Controls<'_>) -> Option<Control> {
        let began = Instant::now();
        self.read_controls(controls);
        while self.requested.is_none() && self.yielding.waits(began) {
            self.read_controls(controls);
        }
        self.requested
    }

    fn read_controls(&mut self, controls: &mut Controls<'_>) {
        while let Some(control) = controls() {
            match control {
                Control::Published { step } => {
                    self.unpublished.remove(&step);
                }
                Control::PauseMicroBatches => self.yielding.is_paused = true,
                Control::ResumeMicroBatches => self.yielding.is_paused = false,
                Control::Cancel => self.requested = Some(control),
                Control::Stop => {
                    self.requested.get_or_insert(control);
                    // When the supervisor is gone, the source says Stop without end.
                    break;
                }
            }
        }
    }
}
