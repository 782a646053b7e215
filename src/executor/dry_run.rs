//! What a job would be, without making it: its files are put into a work folder of their own and a
//! trainer process looks at them, with a limit on its time. Whoever asks may go away at any moment:
//! process and folder go with them.

use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::ending::Ending;
use super::trainer::{Errand, Heard, Trainer};
use super::{Tools, staging};
use crate::domain::ids;
use crate::domain::job::{Job, JobError};
use crate::train::protocol::DryRun;
use crate::train::protocol::Progress;

/// Dry runs at once: each reads files that may be large, and takes a core while it does.
const AT_ONCE: usize = 1;

/// How long one waits for its turn.
const TURN: Duration = Duration::from_secs(30);

/// How long one may take; clients give up after ten minutes.
const LIMIT: Duration = Duration::from_secs(540);

/// Why a dry run has no answer.
#[derive(Debug, thiserror::Error)]
pub enum DryRunError {
    /// The job could not begin.
    #[error("{}", .0.message)]
    Refused(JobError),
    /// Others are before it.
    #[error("another dry run is under way and took more than {} s: try again later", TURN.as_secs())]
    Busy,
    /// It takes too long.
    #[error(
        "the files cannot be looked at within {} s; the job itself has no such limit", LIMIT.as_secs()
    )]
    TooLong,
    /// It broke.
    #[error("{0}")]
    Broken(String),
}

/// Makes dry runs, one after the other.
pub struct DryRuns {
    tools: Tools,
    turns: Semaphore,
}

impl DryRuns {
    /// With the tools of an executor, whose work folder is there.
    ///
    /// # Errors
    /// The current folder cannot be read, and the work folder is named from it.
    pub fn new(tools: Tools) -> std::io::Result<Self> {
        // The trainer may be told paths, and must not depend on the folder it is started in.
        let work_dir = std::path::absolute(&tools.work_dir)?;
        Ok(Self { tools: Tools { work_dir, ..tools }, turns: Semaphore::new(AT_ONCE) })
    }

    /// Says what the job would be, which is in no store and never will be.
    pub async fn preview(&self, job: Job) -> Result<DryRun, DryRunError> {
        let turn = timeout(TURN, self.turns.acquire()).await;
        let _turn = turn
            .map_err(|_elapsed| DryRunError::Busy)?
            .map_err(|closed| DryRunError::Broken(closed.to_string()))?;
        match timeout(LIMIT, self.look(job)).await {
            Ok(looked) => looked,
            Err(_elapsed) => Err(DryRunError::TooLong),
        }
    }

    async fn look(&self, mut job: Job) -> Result<DryRun, DryRunError> {
        // Named so that nobody takes the folder for that of a job.
        job.id = format!("{}{}", staging::DRY_RUN_PREFIX, ids::new_job_id());
        let _folder = Folder(self.tools.work_dir.join(&job.id));
        let spec = staging::stage(&self.tools, &job).await.map_err(|ending| match ending {
            Ending::Failed(error) => DryRunError::Refused(error),
            Ending::Retry(event) => DryRunError::Broken(event.message),
            other => DryRunError::Broken(format!("its files are not in place: {}", other.word())),
        })?;
        let Tools { trainer: binary, device, patience, .. } = &self.tools;
        let mut trainer = Trainer::start(binary, Errand::DryRun, *device, &spec)
            .await
            .map_err(|error| DryRunError::Broken(format!("{}: {error}", binary.display())))?;
        match trainer.hear().await {
            Some(Heard::Progress(progress)) => match *progress {
                Progress::DryRunDone { dry_run } => Ok(*dry_run),
                other => Err(DryRunError::Broken(format!("it says {other:?}"))),
            },
            Some(Heard::Garbled(reason)) => Err(DryRunError::Broken(reason)),
            None => Err(DryRunError::Broken(trainer.end(patience.exit).await.describe(None))),
        }
    }
}

/// A work folder that goes with whoever made it.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        // A handful of entries. What stays is removed at the next start.
        match std::fs::remove_dir_all(&self.0) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => {
                tracing::warn!(folder = %self.0.display(), %error, "a dry run's folder stays");
            }
        }
    }
}
