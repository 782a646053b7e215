//! Dry runs: what a job would be, without making it. Its files are staged in a work folder of their own,
//! and a trainer process in its mode for dry runs reads them, with a limit on its time. When the client
//! disconnects, the process is killed and the folder removed.

use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::context::ExecutorContext;
use super::staging::{self, StagingError};
use super::trainer::{Trainer, TrainerMessage, TrainerMode};
use super::work_folder::{self, DRY_RUN_PREFIX};
use crate::domain::ids;
use crate::domain::job::{Job, JobError};
use crate::train::protocol::DryRun;
use crate::train::protocol::Progress;

/// Dry runs at once: each reads files that may be large, and takes a core while it does.
const AT_ONCE: usize = 1;

/// How long one waits for another.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// How long one may take; clients give up after ten minutes.
const LIMIT: Duration = Duration::from_secs(540);

/// Why a dry run has no result.
#[derive(Debug, thiserror::Error)]
pub enum DryRunError {
    /// The job could not begin.
    #[error("{}", .0.message)]
    Refused(JobError),
    /// Another one runs.
    #[error(
        "another dry run is under way and took more than {} s: try again later",
        LONGEST_WAIT.as_secs()
    )]
    Busy,
    /// It takes too long.
    #[error(
        "the files cannot be read within {} s; the job itself has no such limit", LIMIT.as_secs()
    )]
    TooLong,
    /// The trainer, the store or the disk failed.
    #[error("{0}")]
    Broken(String),
}

/// Makes dry runs, one after the other.
pub struct DryRuns {
    context: ExecutorContext,
    permits: Semaphore,
}

impl DryRuns {
    /// With the context of an executor, whose work folder exists.
    ///
    /// # Errors
    /// The current folder cannot be read, and the work folder is named from it.
    pub fn new(mut context: ExecutorContext) -> std::io::Result<Self> {
        // The trainer is given paths, and must not depend on the folder that it is started in.
        context.work_dir = std::path::absolute(&context.work_dir)?;
        Ok(Self { context, permits: Semaphore::new(AT_ONCE) })
    }

    /// Says what the job would be. The job is never stored.
    pub async fn dry_run(&self, job: Job) -> Result<DryRun, DryRunError> {
        let permit = timeout(LONGEST_WAIT, self.permits.acquire()).await;
        let _permit = permit
            .map_err(|_elapsed| DryRunError::Busy)?
            .map_err(|closed| DryRunError::Broken(closed.to_string()))?;
        match timeout(LIMIT, self.run_trainer(job)).await {
            Ok(result) => result,
            Err(_elapsed) => Err(DryRunError::TooLong),
        }
    }

    async fn run_trainer(&self, mut job: Job) -> Result<DryRun, DryRunError> {
        // The prefix tells its folder from that of a job.
        job.id = format!("{DRY_RUN_PREFIX}{}", ids::new_job_id());
        let _folder = DryRunFolder(work_folder::path(&self.context, &job.id));
        let spec = staging::stage(&self.context, &job).await.map_err(|error| match error {
            StagingError::Permanent(error) => DryRunError::Refused(error),
            StagingError::Transient { reason, .. } => DryRunError::Broken(reason),
        })?;
        let ExecutorContext { trainer_binary: binary, device, timeouts, .. } = &self.context;
        let mut trainer = Trainer::start(binary, TrainerMode::DryRun, *device, &spec)
            .await
            .map_err(|error| DryRunError::Broken(format!("{}: {error}", binary.display())))?;
        match trainer.next_message().await {
            Some(TrainerMessage::Progress(progress)) => match *progress {
                Progress::DryRunDone { dry_run } => Ok(*dry_run),
                other => Err(DryRunError::Broken(format!("the trainer wrote {other:?}"))),
            },
            Some(TrainerMessage::Malformed(reason)) => Err(DryRunError::Broken(reason)),
            None => Err(DryRunError::Broken(trainer.exit(timeouts.exit).await.describe(None))),
        }
    }
}

/// A work folder that is removed when it is dropped.
struct DryRunFolder(PathBuf);

impl Drop for DryRunFolder {
    fn drop(&mut self) {
        // A handful of entries. A folder that stays is removed at the next start.
        match std::fs::remove_dir_all(&self.0) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => {
                tracing::warn!(folder = %self.0.display(), %error, "a dry run's folder is not removed");
            }
        }
    }
}
