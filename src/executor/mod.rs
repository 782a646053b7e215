//! Stage 4: one job at a time, in a trainer process of its own.
//!
//! The executor is the only stage that knows both the queue and the engine, and the only one that
//! writes the progress of a job to the store. The command that serves makes one with
//! [`Executor::prepare`] before anything else uses the store, and spawns [`Executor::run`]:
//!
//! 1. jobs that were running when the last server died are queued again, and its garbage is collected
//!    (`garbage_collection::start_up`);
//! 2. claim the job whose turn it is ([`Executor::run`]) and renew the claim (`heartbeat`);
//! 3. put its files into its work folder (`staging`, `work_folder`);
//! 4. start `hone trainer` (`trainer`) and listen to it until it ends (`supervise`, `trainer_end`); a cancel, a
//!    pause, a shutdown and the serving load are sent to it (`trainer_control`), and one that stands still is
//!    ended (`watchdog`);
//! 5. write its messages as rows, events and blobs (`progress`, `publish`);
//! 6. write the job's outcome, exactly once (`outcome`).
//!
//! [`DryRuns`] says what a job would be, in a trainer process of its own as well (`dry_run`).
//!
//! Beside the jobs, [`Executor::run`] removes what is no longer needed
//! (`garbage_collection::periodic`).
//!
//! Whatever the trainer does (a crash, an out-of-memory kill, silence after a cancel) ends at most its
//! own job; the next job runs.

mod backoff;
mod context;
mod dry_run;
mod error;
mod garbage_collection;
mod heartbeat;
mod outcome;
mod progress;
mod publish;
mod staging;
mod supervise;
mod trainer;
mod trainer_control;
mod trainer_end;
mod watchdog;
mod work_folder;

use std::path::PathBuf;

use tokio_util::sync::CancellationToken;

use self::backoff::Backoff;
pub use self::context::{ExecutorContext, Timeouts};
pub use self::dry_run::{DryRunError, DryRuns};
pub use self::error::ExecutorError;
use self::garbage_collection::{periodic, start_up};
pub use self::outcome::MAX_ATTEMPTS;
use crate::domain::job::{EventLevel, NewEvent};
pub use crate::train::protocol::{DataCount, DryRun, MemoryNeed, PlannedRun};
pub use crate::train::run::report::FILE_NAME as REPORT_FILE;

/// Runs the jobs of one device, one after the other.
pub struct Executor {
    context: ExecutorContext,
}

/// What one turn of the executor did.
enum Tick {
    /// A job has run, well or not: try the next at once.
    RanJob,
    /// Nothing waits.
    Idle,
    /// The store failed: try again later.
    StoreFailed,
}

impl Executor {
    /// Recovers from the death of an earlier server: jobs that it ran are queued again, and its garbage
    /// is collected. Nothing else may use the store or the blobs before this returns.
    pub async fn prepare(mut context: ExecutorContext) -> Result<Self, ExecutorError> {
        let failed = |path: &PathBuf| {
            let path = path.display().to_string();
            move |source| ExecutorError::WorkFolder { path, source }
        };
        // The trainer is given paths, and must not depend on the folder that it is started in.
        context.work_dir =
            std::path::absolute(&context.work_dir).map_err(failed(&context.work_dir))?;
        tokio::fs::create_dir_all(&context.work_dir).await.map_err(failed(&context.work_dir))?;

        let restarted = NewEvent::message(
            EventLevel::Warn,
            "The server was restarted; the job continues from its last checkpoint",
        );
        let requeued = context.store.requeue_orphans(&[restarted]).await?;
        for job_id in &requeued {
            tracing::info!(job.id = job_id, "the job was running when the server ended");
        }
        start_up::collect(&context).await?;
        Ok(Self { context })
    }

    /// Runs jobs until `shutdown`, then stops the running one at a checkpoint, gives it back to
    /// the queue and returns.
    pub async fn run(self, shutdown: CancellationToken) {
        tokio::join!(self.run_jobs(&shutdown), periodic::run(&self.context, &shutdown));
    }

    async fn run_jobs(&self, shutdown: &CancellationToken) {
        let mut backoff = Backoff::new();
        while !shutdown.is_cancelled() {
            // The queue keeps an announcement that comes between the claim and the wait.
            match self.tick(shutdown).await {
                Tick::RanJob => backoff.reset(),
                Tick::Idle => {
                    backoff.reset();
                    let wait = self.context.queue.wait_for_work();
                    shutdown.run_until_cancelled(wait).await;
                }
                Tick::StoreFailed => {
                    backoff.wait(shutdown).await;
                }
            }
        }
    }

    /// Claims one job and runs it until it ends or is given back.
    async fn tick(&self, shutdown: &CancellationToken) -> Tick {
        let (claim, job) = match self.context.queue.claim().await {
            Ok(Some(claimed)) => claimed,
            Ok(None) => return Tick::Idle,
            Err(error) => {
                tracing::error!(%error, "the queue cannot be read");
                return Tick::StoreFailed;
            }
        };
        tracing::info!(job.id, job.attempt, epoch = claim.epoch, "job claimed");
        let outcome = supervise::run_job(&self.context, &claim, &job, shutdown).await;
        tracing::info!(job.id, outcome = outcome.as_str(), "work on the job has ended");
        outcome.record(&self.context, &claim, shutdown).await;
        Tick::RanJob
    }
}
