//! The outcome of the work on a claimed job, and its record in the store.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::backoff::Backoff;
use super::context::ExecutorContext;
use super::work_folder;
use crate::domain::error_code::ErrorCode;
use crate::domain::job::{EventLevel, Job, JobError, NewEvent};
use crate::store::{Claim, StoreError, Success};
use crate::util::fail_point::FailPoint;

/// How often a trainer is started for a job that keeps crashing.
pub const MAX_ATTEMPTS: u32 = 3;

/// The outcome of the work on a claimed job.
pub(super) enum JobOutcome {
    /// The model is made, and its files are stored as blobs.
    Succeeded(Box<Success>),
    /// The job cannot be done.
    Failed(JobError),
    /// The user cancelled the job.
    Cancelled,
    /// The server shuts down.
    Released {
        /// The step of the checkpoint at which the trainer stopped, when it did.
        step: Option<u64>,
    },
    /// The user paused the job.
    Paused {
        /// The step of the checkpoint at which the trainer stopped, when it did.
        step: Option<u64>,
    },
    /// Something failed, and another attempt may not.
    Retry(NewEvent),
    /// Something failed after a new checkpoint was written. It does not count as an attempt: attempts
    /// end a job that fails again and again at the same place.
    Continue(NewEvent),
    /// Others hold what the job lacks: it stays queued, and tries again later.
    Postponed {
        /// When.
        seconds: i64,
        /// Says why.
        event: NewEvent,
    },
    /// Another executor holds the job now.
    ClaimLost,
}

/// How long a job waits when it lacks something for the first time, the second and the third, in seconds;
/// later ones wait as long as the third.
const POSTPONED_SECONDS: [i64; 3] = [1, 30, 300];

impl JobOutcome {
    /// Another attempt when the job has attempts left; otherwise it fails.
    pub(super) fn retry_or_fail(
        job: &Job,
        code: ErrorCode,
        what: &str,
        data: Option<serde_json::Value>,
    ) -> Self {
        if job.attempt < MAX_ATTEMPTS {
            let message = format!(
                "{what}; the job starts again from its last checkpoint (attempt {} of \
                 {MAX_ATTEMPTS})",
                job.attempt + 1
            );
            let event = NewEvent::message(EventLevel::Warn, message);
            return Self::Retry(NewEvent { data, ..event });
        }
        let message = format!("{what}; given up after {} attempts", job.attempt);
        Self::Failed(JobError { code, message, param: None })
    }

    /// Waits for what others hold, for as long as a job may; then it fails with `error`.
    pub(super) fn postpone_or_fail(context: &ExecutorContext, job: &Job, error: JobError) -> Self {
        let now = context.clock.now();
        let (since, count) = job.shortage.map_or((now, 0), |short| (short.since, short.count));
        let waited = Duration::from_secs(now.saturating_sub(since).unsigned_abs());
        if waited >= context.resource_wait {
            let waited = humantime::format_duration(waited);
            let message = format!("{}; given up after {waited} (--resource-wait)", error.message);
            return Self::Failed(JobError { message, ..error });
        }
        let index = (count as usize).min(POSTPONED_SECONDS.len() - 1);
        let seconds = POSTPONED_SECONDS[index];
        let message =
            format!("{}; the job stays queued and tries again in {seconds} s", error.message);
        let data = serde_json::json!({
            "code": error.code,
            "waited_seconds": waited.as_secs(),
            "next_attempt_in_seconds": seconds,
        });
        let event = NewEvent::message(EventLevel::Warn, message);
        Self::Postponed { seconds, event: NewEvent { data: Some(data), ..event } }
    }

    /// [`Self::Continue`] after a trainer has written a checkpoint newer than the one that it started
    /// from.
    pub(super) fn continue_from(step: u64, what: &str, data: serde_json::Value) -> Self {
        let message = format!("{what}; the job continues from its checkpoint at step {step}");
        let event = NewEvent::message(EventLevel::Warn, message);
        Self::Continue(NewEvent { data: Some(data), ..event })
    }

    /// For logs.
    pub(super) fn as_str(&self) -> &'static str {
        match self {
            Self::Succeeded(_) => "succeeded",
            Self::Failed(_) => "failed",
            Self::Cancelled => "cancelled",
            Self::Released { .. } => "released",
            Self::Paused { .. } => "paused",
            Self::Retry(_) | Self::Continue(_) => "retry",
            Self::Postponed { .. } => "postponed",
            Self::ClaimLost => "lost",
        }
    }

    fn is_terminal(&self) -> bool {
        matches!(self, Self::Succeeded(_) | Self::Failed(_) | Self::Cancelled)
    }

    /// Records the outcome in the store, again and again while the store fails, so that a short failure
    /// of the store does not lose a result. A shutdown ends the wait; the job is then still `running`,
    /// and the next start queues it again.
    pub(super) async fn record(
        &self,
        context: &ExecutorContext,
        claim: &Claim,
        shutdown: &CancellationToken,
    ) {
        let mut backoff = Backoff::new();
        loop {
            let written = match self.write(context, claim).await {
                Ok(()) if self.is_terminal() => FailPoint::JobEnded
                    .reach_async()
                    .await
                    .map_err(|error| StoreError::Database(error.into())),
                written => written,
            };
            match written {
                Ok(()) => break,
                Err(StoreError::LostClaim(job_id)) => {
                    tracing::warn!(
                        job.id = job_id,
                        "the claim was lost before the outcome was written"
                    );
                    return;
                }
                Err(error) => {
                    tracing::error!(job.id = claim.job_id, %error, "the job's outcome cannot be written");
                }
            }
            if !backoff.wait(shutdown).await {
                return;
            }
            // Renews the claim; whether that works is seen at the next write.
            if let Err(error) = context.queue.heartbeat(claim).await {
                tracing::warn!(job.id = claim.job_id, %error, "heartbeat failed");
            }
        }
        if self.is_terminal() {
            work_folder::remove(context, &claim.job_id).await;
        }
    }

    async fn write(&self, context: &ExecutorContext, claim: &Claim) -> Result<(), StoreError> {
        let store = &context.store;
        match self {
            Self::Succeeded(success) => store.finish_succeeded(claim, success).await,
            Self::Failed(error) => {
                let event = NewEvent::message(EventLevel::Error, error.message.clone());
                store.finish_failed(claim, error, &[event]).await
            }
            Self::Cancelled => store.finish_cancelled(claim).await,
            Self::Released { step } => {
                let from = match step {
                    Some(step) => format!("step {step}"),
                    None => "its last checkpoint".to_owned(),
                };
                let event = NewEvent::message(
                    EventLevel::Info,
                    format!("The server is shutting down; the job will continue from {from}"),
                );
                store.release(claim, &[event]).await
            }
            Self::Paused { step } => {
                let message = match step {
                    Some(step) => format!("Fine-tuning job paused after step {step}"),
                    None => "Fine-tuning job paused".to_owned(),
                };
                let event = NewEvent::message(EventLevel::Info, message);
                // The store pauses the job, or queues it when the user has resumed it meanwhile.
                store.release(claim, &[event]).await
            }
            Self::Continue(event) => store.release(claim, std::slice::from_ref(event)).await,
            Self::Retry(event) => store.retry(claim, std::slice::from_ref(event)).await,
            Self::Postponed { seconds, event } => {
                store.postpone(claim, *seconds, std::slice::from_ref(event)).await
            }
            Self::ClaimLost => Ok(()),
        }
    }
}
