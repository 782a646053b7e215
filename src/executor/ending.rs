//! How a claimed job ends, and writing it down once.

use tokio_util::sync::CancellationToken;

use super::{BACKOFF, LONGEST_BACKOFF, MAX_ATTEMPTS, Tools, staging};
use crate::domain::error_code::ErrorCode;
use crate::domain::job::{EventLevel, Job, JobError, NewEvent};
use crate::store::{Claim, StoreError, Success};

/// How the work on a claimed job ended.
pub(super) enum Ending {
    /// The model is made, and its files lie in the blobs.
    Succeeded(Box<Success>),
    /// It cannot be done.
    Failed(JobError),
    /// The user wanted it to end.
    Cancelled,
    /// The server is shutting down; `step` is the last one that the trainer named.
    Released {
        /// Optimiser steps done.
        step: Option<u64>,
    },
    /// The user wanted it to pause; `step` is the last one that the trainer named.
    Paused {
        /// Optimiser steps done.
        step: Option<u64>,
    },
    /// Something broke that may not break again.
    Retry(NewEvent),
    /// The same, after work that is not lost: it does not count against the job's attempts, which
    /// are there to end what breaks again and again at the same place.
    GoOn(NewEvent),
    /// Another executor holds the job now.
    Lost,
}

impl Ending {
    /// Fails the job for good, with the same sentence on the job and in its events.
    pub(super) fn failed(code: ErrorCode, message: String, param: Option<&str>) -> Self {
        Self::Failed(JobError { code, message, param: param.map(str::to_owned) })
    }

    /// Tries the job again when it has attempts left, and fails it otherwise.
    pub(super) fn broken(
        job: &Job,
        code: ErrorCode,
        what: &str,
        data: Option<serde_json::Value>,
    ) -> Self {
        if job.attempt < MAX_ATTEMPTS {
            let mut event = NewEvent::message(
                EventLevel::Warn,
                format!(
                    "{what}; the job starts again from its last checkpoint (attempt {} of \
                     {MAX_ATTEMPTS})",
                    job.attempt + 1
                ),
            );
            event.data = data;
            return Self::Retry(event);
        }
        Self::failed(code, format!("{what}; given up after {} attempts", job.attempt), None)
    }

    /// [`Ending::broken`] of a trainer that had written a newer checkpoint than it began with.
    pub(super) fn broken_on_the_way(what: &str, step: u64, data: serde_json::Value) -> Self {
        let message = format!("{what}; the job goes on from its checkpoint at step {step}");
        let event = NewEvent::message(EventLevel::Warn, message);
        Self::GoOn(NewEvent { data: Some(data), ..event })
    }

    /// For logs.
    pub(super) fn word(&self) -> &'static str {
        match self {
            Self::Succeeded(_) => "succeeded",
            Self::Failed(_) => "failed",
            Self::Cancelled => "cancelled",
            Self::Released { .. } => "released",
            Self::Paused { .. } => "paused",
            Self::Retry(_) | Self::GoOn(_) => "retry",
            Self::Lost => "lost",
        }
    }

    fn is_terminal(&self) -> bool {
        matches!(self, Self::Succeeded(_) | Self::Failed(_) | Self::Cancelled)
    }
}

/// Writes the ending to the store, again and again while the store fails: a result that was
/// reached is not thrown away for a moment's trouble. A shutdown ends the wait; the job is then
/// still `running`, and the next start takes it up again.
pub(super) async fn settle(
    tools: &Tools,
    claim: &Claim,
    ending: &Ending,
    shutdown: &CancellationToken,
) {
    let mut backoff = BACKOFF;
    loop {
        match write(tools, claim, ending).await {
            Ok(()) => break,
            Err(StoreError::LostClaim(job_id)) => {
                tracing::warn!(job.id = job_id, "the claim was lost before the end was written");
                return;
            }
            Err(error) => {
                tracing::error!(job.id = claim.job_id, %error, "the job's end cannot be written");
            }
        }
        if shutdown.run_until_cancelled(tokio::time::sleep(backoff)).await.is_none() {
            return;
        }
        backoff = (backoff * 2).min(LONGEST_BACKOFF);
        // Keeps the claim; whether that works is seen at the next write.
        if let Err(error) = tools.queue.heartbeat(claim).await {
            tracing::warn!(job.id = claim.job_id, %error, "heartbeat failed");
        }
    }
    if ending.is_terminal() {
        staging::remove(tools, &claim.job_id).await;
    }
}

async fn write(tools: &Tools, claim: &Claim, ending: &Ending) -> Result<(), StoreError> {
    let store = &tools.store;
    match ending {
        Ending::Succeeded(success) => store.finish_succeeded(claim, success).await,
        Ending::Failed(error) => {
            let event = NewEvent::message(EventLevel::Error, error.message.clone());
            store.finish_failed(claim, error, &[event]).await
        }
        Ending::Cancelled => store.finish_cancelled(claim).await,
        Ending::Released { step } => {
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
        Ending::Paused { step } => {
            let message = match step {
                Some(step) => format!("Fine-tuning job paused after step {step}"),
                None => "Fine-tuning job paused".to_owned(),
            };
            let event = NewEvent::message(EventLevel::Info, message);
            // The store pauses it, or lets it wait when the user has resumed it meanwhile.
            store.release(claim, &[event]).await
        }
        Ending::GoOn(event) => store.release(claim, std::slice::from_ref(event)).await,
        Ending::Retry(event) => store.retry(claim, std::slice::from_ref(event)).await,
        Ending::Lost => Ok(()),
    }
}
