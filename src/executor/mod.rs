//! Stage 4: one job at a time, in a trainer process of its own.
//!
//! The executor is the only stage that knows both the queue and the engine, and the only one that
//! writes the progress of a job to the store. The command that serves makes one with
//! [`Executor::prepare`] before anything else uses the store, and spawns [`Executor::run`]:
//!
//! 1. take up what a dead server left: running jobs wait again, leftovers are swept;
//! 2. claim the oldest job that waits ([`Executor::run`]);
//! 3. put its files into its work folder (`staging`);
//! 4. start `hone trainer`, tell it what to do, and listen (`trainer`, `supervise`);
//! 5. turn what it says into rows and blobs (`report`, `publish`);
//! 6. write how the job ended, exactly once (`ending`).
//!
//! [`DryRuns`] says what a job would be, in a trainer process of its own as well (`dry_run`).
//!
//! Beside the jobs, [`Executor::run`] removes what is no longer needed (`housekeeping`).
//!
//! Whatever the trainer does — a crash, an out-of-memory kill, silence after a cancel — ends at
//! most its own job; the next one goes on.

mod dry_run;
mod ending;
mod heartbeat;
mod housekeeping;
mod leftovers;
mod publish;
mod report;
mod staging;
mod supervise;
mod trainer;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

pub use self::dry_run::{DryRunError, DryRuns};
use crate::base_models::Catalog;
use crate::blobs::{BlobError, Blobs};
use crate::config::Priority;
use crate::device::Device;
use crate::domain::job::{EventLevel, NewEvent};
use crate::queue::Queue;
use crate::serve::ServingLoad;
use crate::store::{Store, StoreError};
pub use crate::train::protocol::{DataCount, DryRun, MemoryNeed, PlannedRun};
pub use crate::train::run::report::FILE_NAME as REPORT_FILE;
use crate::util::clock::Clock;

/// How often a trainer is started for a job that keeps crashing.
pub const MAX_ATTEMPTS: u32 = 3;

/// First and longest wait after the store has failed.
const BACKOFF: Duration = Duration::from_secs(1);
const LONGEST_BACKOFF: Duration = Duration::from_secs(30);

/// Why an executor cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum ExecutorError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The blobs failed.
    #[error(transparent)]
    Blobs(#[from] BlobError),
    /// The folder of work in progress failed.
    #[error("{path}: {source}")]
    WorkFolder {
        /// Which folder.
        path: String,
        /// Why.
        source: std::io::Error,
    },
}

/// How long a trainer may take to end; one that takes longer is killed.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// After it was told to cancel.
    pub cancel: Duration,
    /// After it was told to stop at a checkpoint, for a shutdown.
    pub stop: Duration,
    /// The same for a pause, which leaves it the time that a long step takes.
    pub pause: Duration,
    /// After it has said its last word.
    pub exit: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            cancel: Duration::from_secs(10),
            stop: Duration::from_secs(20),
            pause: Duration::from_secs(600),
            exit: Duration::from_secs(10),
        }
    }
}

/// What an executor works with.
#[derive(Clone)]
pub struct Tools {
    /// Where jobs and their progress are kept.
    pub store: Arc<dyn Store>,
    /// Whose turn it is; shared with those who announce work and wishes.
    pub queue: Arc<Queue>,
    /// Where data comes from and results go to.
    pub blobs: Blobs,
    /// Where base models are found.
    pub base_models: Catalog,
    /// For times of files, models and checkpoints.
    pub clock: Arc<dyn Clock>,
    /// The folder of work in progress: one sub-folder for each job, removed when it has ended.
    pub work_dir: PathBuf,
    /// The binary whose command `trainer` trains: this one.
    pub trainer: PathBuf,
    /// What it trains on.
    pub device: Device,
    /// How long it may take to end.
    pub patience: Patience,
    /// Which goes first, answering or training.
    pub priority: Priority,
    /// Whose answers a job waits for between micro-batches.
    pub yields_to: Option<ServingLoad>,
}

/// Runs the jobs of one device, one after the other.
pub struct Executor {
    tools: Tools,
}

/// What one look at the queue came to.
enum Tick {
    /// A job has run, well or not: look again.
    RanJob,
    /// Nothing waits.
    Idle,
    /// The store failed: look again later.
    StoreFailed,
}

impl Executor {
    /// Takes up what a server that died left behind: jobs that it ran wait again, and bytes that
    /// no row names are removed. Nothing else may use the store or the blobs before this returns.
    pub async fn prepare(mut tools: Tools) -> Result<Self, ExecutorError> {
        let failed = |path: &PathBuf| {
            let path = path.display().to_string();
            move |source| ExecutorError::WorkFolder { path, source }
        };
        // The trainer may be told paths, and must not depend on the folder it is started in.
        tools.work_dir = std::path::absolute(&tools.work_dir).map_err(failed(&tools.work_dir))?;
        tokio::fs::create_dir_all(&tools.work_dir).await.map_err(failed(&tools.work_dir))?;

        let restarted = NewEvent::message(
            EventLevel::Warn,
            "The server was restarted; the job continues from its last checkpoint",
        );
        let requeued = tools.store.requeue_orphans(&[restarted]).await?;
        for job_id in &requeued {
            tracing::info!(job.id = job_id, "the job was running when the server ended");
        }
        leftovers::sweep(&tools).await?;
        Ok(Self { tools })
    }

    /// Runs jobs until `shutdown`, then stops the running one at a checkpoint, gives it back to
    /// the queue and returns.
    pub async fn run(self, shutdown: CancellationToken) {
        tokio::join!(self.run_jobs(&shutdown), housekeeping::run(&self.tools, &shutdown));
    }

    async fn run_jobs(&self, shutdown: &CancellationToken) {
        let mut backoff = BACKOFF;
        while !shutdown.is_cancelled() {
            // The bell keeps a ring that comes between the look and the wait.
            match self.tick(shutdown).await {
                Tick::RanJob => backoff = BACKOFF,
                Tick::Idle => {
                    backoff = BACKOFF;
                    let wait = self.tools.queue.wait_for_work();
                    shutdown.run_until_cancelled(wait).await;
                }
                Tick::StoreFailed => {
                    shutdown.run_until_cancelled(tokio::time::sleep(backoff)).await;
                    backoff = (backoff * 2).min(LONGEST_BACKOFF);
                }
            }
        }
    }

    /// Claims one job and runs it to its end.
    async fn tick(&self, shutdown: &CancellationToken) -> Tick {
        let (claim, job) = match self.tools.queue.claim().await {
            Ok(Some(claimed)) => claimed,
            Ok(None) => return Tick::Idle,
            Err(error) => {
                tracing::error!(%error, "the queue cannot be read");
                return Tick::StoreFailed;
            }
        };
        tracing::info!(job.id, job.attempt, epoch = claim.epoch, "job claimed");
        let ending = supervise::run_job(&self.tools, &claim, &job, shutdown).await;
        tracing::info!(job.id, ending = ending.word(), "job left");
        ending::settle(&self.tools, &claim, &ending, shutdown).await;
        Tick::RanJob
    }
}
