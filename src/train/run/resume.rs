//! Going on from a checkpoint of an earlier trainer of the same job.

use super::errors::{RunError, checkpoint_failed};
use super::notices::warn;
use super::{Run, Sink, checkpoint};
use crate::train::protocol::Progress;

impl Run<'_> {
    /// Resumes from the newest whole checkpoint, if there is one. Retained checkpoints are announced
    /// again: the supervisor may have died before it published them.
    pub(super) fn resume(&mut self, sink: &mut Sink<'_>) -> Result<(), RunError> {
        let work_dir = &self.spec.work_dir;
        let search =
            checkpoint::newest(work_dir, &self.state.identity).map_err(checkpoint_failed)?;
        for message in search.passed_over {
            warn(sink, format!("{message}; an earlier checkpoint is used"));
        }
        let Some(found) = search.found else {
            return Ok(());
        };
        checkpoint::restore(&found.folder, self.engine).map_err(checkpoint_failed)?;
        self.state = found.state;
        sink(Progress::Resumed { step: self.state.step });
        for step in self.state.retained.clone() {
            let directory = checkpoint::folder(work_dir, step);
            if checkpoint::is_whole(&directory) {
                self.announce(step, directory, sink);
            }
        }
        Ok(())
    }
}
