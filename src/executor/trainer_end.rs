//! How a trainer ended.

use std::time::Duration;

use super::context::Timeouts;
use super::publish::RunOutput;
use super::watchdog::Stall;
use crate::domain::job::JobError;

/// How a trainer ended, as its supervisor saw it.
pub(super) enum TrainerEnd {
    /// The run is finished.
    Finished(RunOutput),
    /// It ended after [`crate::train::protocol::Control::Cancel`].
    Cancelled,
    /// It stopped at a checkpoint after [`crate::train::protocol::Control::Stop`].
    Stopped,
    /// The run failed.
    Failed(JobError),
    /// Others hold what the run lacks.
    Short {
        /// For the job, should it not wait any longer.
        error: JobError,
        /// Bytes of the machine's memory that the run needs, where that is what it lacks.
        memory: Option<u64>,
    },
    /// It exited without a last message.
    Died,
    /// It did not end in the time that it had.
    Overdue,
    /// It said nothing any more, or its run did not move.
    Stalled(Stall),
    /// It wrote a malformed message.
    Malformed(String),
    /// The claim is lost.
    ClaimLost,
}

impl TrainerEnd {
    /// How long the process may still take to exit.
    pub(super) fn exit_timeout(&self, timeouts: Timeouts) -> Duration {
        match self {
            Self::Finished(_)
            | Self::Cancelled
            | Self::Stopped
            | Self::Failed(_)
            | Self::Short { .. }
            | Self::Died => timeouts.exit,
            Self::Overdue | Self::Stalled(_) | Self::Malformed(_) | Self::ClaimLost => {
                Duration::ZERO
            }
        }
    }
}
