//! Supervises one claimed job from its claim to its outcome: stage its files, start a trainer, listen to
//! it, publish what it makes.

use std::path::Path;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::context::ExecutorContext;
use super::heartbeat::{ControlRequest, Heartbeat};
use super::outcome::JobOutcome;
use super::progress::ProgressRecorder;
use super::publish::{PublishError, Publisher, RunOutput};
use super::staging::{self, StagingError};
use super::trainer::{Trainer, TrainerExit, TrainerMessage, TrainerMode};
use super::trainer_control::{ControlsSent, EndRequest, yield_to_serving};
use super::trainer_end::TrainerEnd;
use super::watchdog::Watchdog;
use crate::blobs::BlobError;
use crate::config::Priority;
use crate::domain::error_code::ErrorCode;
use crate::domain::job::{EventLevel, Job, JobError};
use crate::store::{Claim, StoreError};
use crate::train::protocol::{Control, Progress};
use crate::train::run::checkpoint;
use crate::util::fail_point::FailPoint;
use crate::util::shortage;

/// How long the memory that a job waits for is kept free while its trainer starts.
const START_TIME: Duration = Duration::from_secs(120);

/// Works on a claimed job until it ends, is given back, or is lost.
pub(super) async fn run_job(
    context: &ExecutorContext,
    claim: &Claim,
    job: &Job,
    shutdown: &CancellationToken,
) -> JobOutcome {
    if job.cancel_requested {
        return JobOutcome::Cancelled;
    }
    if job.pause_requested {
        return JobOutcome::Paused { step: None };
    }
    let supervisor = Supervisor {
        context,
        job,
        shutdown,
        publisher: Publisher { context, claim, job },
        heartbeat: Heartbeat::start(context.queue.clone(), claim.clone()),
        progress: ProgressRecorder::new(context, claim, job),
        controls: ControlsSent::none(context.timeouts),
    };
    supervisor.run(claim.epoch == 1).await
}

/// What supervising one job needs.
struct Supervisor<'a> {
    context: &'a ExecutorContext,
    job: &'a Job,
    shutdown: &'a CancellationToken,
    publisher: Publisher<'a>,
    heartbeat: Heartbeat,
    progress: ProgressRecorder<'a>,
    controls: ControlsSent,
}

impl Supervisor<'_> {
    async fn run(mut self, is_first_start: bool) -> JobOutcome {
        if let Err(error) = FailPoint::Claimed.reach_async().await {
            let what = format!("the claimed job could not be started: {error}");
            return JobOutcome::retry_or_fail(self.job, ErrorCode::InternalError, &what, None);
        }
        let started = match (is_first_start, self.job.shortage) {
            (true, _) => Some("Fine-tuning job started"),
            (false, None) => Some("Fine-tuning job started again"),
            // It may wait for long, and each attempt says whether it can begin.
            (false, Some(_)) => None,
        };
        if let Some(started) = started {
            let written = self.progress.note(EventLevel::Info, started.to_owned(), None).await;
            if self.is_claim_lost(written) {
                return JobOutcome::ClaimLost;
            }
        }

        let spec = match staging::stage(self.context, self.job).await {
            Ok(spec) => spec,
            Err(StagingError::Permanent(error)) => return JobOutcome::Failed(error),
            Err(StagingError::Transient { code, reason, is_shortage: true }) => {
                let error = JobError { code, message: reason, param: None };
                return JobOutcome::postpone_or_fail(self.context, self.job, error);
            }
            Err(StagingError::Transient { code, reason, is_shortage: false }) => {
                return JobOutcome::retry_or_fail(self.job, code, &reason, None);
            }
        };
        match self.heartbeat.request() {
            ControlRequest::None => {}
            ControlRequest::Cancel => return JobOutcome::Cancelled,
            ControlRequest::Pause => return JobOutcome::Paused { step: None },
            ControlRequest::ClaimLost => return JobOutcome::ClaimLost,
        }
        if self.shutdown.is_cancelled() {
            return JobOutcome::Released { step: None };
        }

        let first_checkpoint = newest_checkpoint(&spec.work_dir);
        let ExecutorContext { trainer_binary: binary, device, timeouts, priority, .. } =
            self.context;
        let mode = TrainerMode::Run { keeps_priority: *priority == Priority::Train };
        let started = match Trainer::start(binary, mode, *device, &spec).await {
            Ok(trainer) => FailPoint::TrainerStarted.reach_async().await.map(|()| trainer),
            failed => failed,
        };
        let mut trainer = match started {
            Ok(trainer) => trainer,
            Err(error) => {
                tracing::error!(binary = %binary.display(), %error, "the trainer cannot be started");
                let what = format!("the trainer cannot be started: {error}");
                if shortage::of_io(&error).is_some() {
                    let code = ErrorCode::InternalError;
                    let error = JobError { code, message: what, param: None };
                    return JobOutcome::postpone_or_fail(self.context, self.job, error);
                }
                return JobOutcome::retry_or_fail(self.job, ErrorCode::WorkerCrashed, &what, None);
            }
        };
        let end = self.listen(&mut trainer).await;
        let exit = trainer.exit(end.exit_timeout(*timeouts)).await;
        let last_checkpoint = newest_checkpoint(&spec.work_dir);
        let new_checkpoint = last_checkpoint.filter(|_| last_checkpoint > first_checkpoint);
        self.outcome(end, &exit, new_checkpoint).await
    }

    /// The job's outcome, from how the trainer ended and what it was told. What the user or the operator
    /// requested holds however the trainer ended then.
    async fn outcome(
        mut self,
        end: TrainerEnd,
        exit: &TrainerExit,
        new_checkpoint: Option<u64>,
    ) -> JobOutcome {
        use {EndRequest as Request, TrainerEnd as End};
        match (end, self.controls.end_request()) {
            (End::Finished(output), _) => self.finished(&output).await,
            (End::Failed(error), _) => JobOutcome::Failed(error),
            (End::ClaimLost, _) => JobOutcome::ClaimLost,

            // What was requested holds however the trainer ended then.
            (_, Request::Cancel) => JobOutcome::Cancelled,
            (End::Stopped, Request::Pause) => {
                self.stopped(|step| JobOutcome::Paused { step }).await
            }
            (End::Stopped, Request::Stop) => {
                self.stopped(|step| JobOutcome::Released { step }).await
            }
            (_, Request::Pause) => JobOutcome::Paused { step: None },
            (_, Request::Stop) => JobOutcome::Released { step: None },

            (End::Short { error, memory }, Request::None) => self.short(error, memory).await,

            (End::Malformed(reason), Request::None) => {
                let what = format!("the trainer wrote a malformed message: {reason}");
                self.crashed(&what, exit)
            }
            (End::Stalled(stall), Request::None) => {
                let what = stall.describe(self.progress.step);
                let code = ErrorCode::StepStalled;
                self.try_again(new_checkpoint, code, &what, exit)
            }
            (End::Cancelled | End::Stopped | End::Died | End::Overdue, Request::None) => {
                let what = exit.describe(self.progress.step);
                self.try_again(new_checkpoint, ErrorCode::WorkerCrashed, &what, exit)
            }
        }
    }

    /// Stores the result of a finished run.
    async fn finished(&self, output: &RunOutput) -> JobOutcome {
        match self.publisher.success(output).await {
            Ok(success) => JobOutcome::Succeeded(Box::new(success)),
            Err(error) => {
                let what = format!("the results could not be stored: {error}");
                if staging::is_blob_shortage(&error) {
                    let code = staging::blob_code(&error);
                    let error = JobError { code, message: what, param: None };
                    return JobOutcome::postpone_or_fail(self.context, self.job, error);
                }
                JobOutcome::retry_or_fail(self.job, staging::blob_code(&error), &what, None)
            }
        }
    }

    /// The outcome of a run that lacks what others hold. Models that answer beside it make room.
    async fn short(&self, error: JobError, memory: Option<u64>) -> JobOutcome {
        let outcome = JobOutcome::postpone_or_fail(self.context, self.job, error);
        if let (JobOutcome::Postponed { seconds, .. }, Some(bytes), Some(serving)) =
            (&outcome, memory, &self.context.serving_memory)
        {
            let (serving, seconds) = (serving.clone(), seconds.unsigned_abs());
            let until_it_has_begun = Duration::from_secs(seconds) + START_TIME;
            // Unloading gives many pages back.
            let unloaded = move || serving.keep_free(bytes, until_it_has_begun);
            if let Err(panic) = tokio::task::spawn_blocking(unloaded).await {
                tracing::error!(error = %panic, "models were not unloaded for a job that waits");
            }
        }
        outcome
    }

    /// Writes the step at which the trainer stopped; the outcome names it.
    async fn stopped(&mut self, outcome: fn(Option<u64>) -> JobOutcome) -> JobOutcome {
        let written = self.progress.write_last_step().await;
        if self.is_claim_lost(written) {
            return JobOutcome::ClaimLost;
        }
        outcome(self.progress.step)
    }

    /// Another attempt, which does not count where the last one has come further.
    fn try_again(
        &self,
        new_checkpoint: Option<u64>,
        code: ErrorCode,
        what: &str,
        exit: &TrainerExit,
    ) -> JobOutcome {
        match new_checkpoint {
            Some(step) => JobOutcome::continue_from(step, what, exit.data()),
            None => JobOutcome::retry_or_fail(self.job, code, what, Some(exit.data())),
        }
    }

    fn crashed(&self, what: &str, exit: &TrainerExit) -> JobOutcome {
        JobOutcome::retry_or_fail(self.job, ErrorCode::WorkerCrashed, what, Some(exit.data()))
    }

    /// Listens to the trainer, the user, the operator and the serving load until the trainer ends.
    async fn listen(&mut self, trainer: &mut Trainer) -> TrainerEnd {
        let mut known = ControlRequest::None;
        let mut is_serving = false;
        let mut watchdog = Watchdog::new(self.context.timeouts, Instant::now());
        loop {
            tokio::select! {
                message = trainer.next_message() => match message {
                    None => return TrainerEnd::Died,
                    Some(TrainerMessage::Malformed(reason)) => return TrainerEnd::Malformed(reason),
                    Some(TrainerMessage::Progress(progress)) => {
                        let began = Instant::now();
                        match &*progress {
                            Progress::Pulse { asked } => watchdog.pulse(began, *asked),
                            Progress::Step { metrics, .. } => {
                                watchdog.step(began, metrics.step, self.progress.total_steps);
                            }
                            _ => {}
                        }
                        if let Some(end) = self.handle(trainer, *progress).await {
                            return end;
                        }
                        watchdog.heard(Instant::now(), began.elapsed());
                    }
                },
                request = self.heartbeat.change_from(known) => {
                    known = request;
                    match request {
                        ControlRequest::None => {}
                        ControlRequest::ClaimLost => return TrainerEnd::ClaimLost,
                        ControlRequest::Pause => self.controls.pause(trainer).await,
                        ControlRequest::Cancel => self.controls.cancel(trainer).await,
                    }
                },
                changed = change_of_serving_load(self.context, is_serving) => {
                    is_serving = changed;
                    yield_to_serving(trainer, is_serving).await;
                },
                () = self.shutdown.cancelled(), if !self.controls.is_stop_sent() => {
                    self.controls.stop(trainer).await;
                },
                () = self.controls.overdue() => return TrainerEnd::Overdue,
                stall = watchdog.stalled() => return TrainerEnd::Stalled(stall),
            }
        }
    }

    /// Writes a message as rows, events and blobs; returns the trainer's end when the message is its
    /// last.
    async fn handle(&mut self, trainer: &mut Trainer, message: Progress) -> Option<TrainerEnd> {
        let written = match message {
            Progress::Note { level, message, data } => {
                self.progress.note(level, message, data).await
            }
            Progress::Resolved { hyperparameters, total_steps, explanations } => {
                self.progress.resolved(&hyperparameters, total_steps, explanations).await
            }
            Progress::Resumed { step } => {
                self.progress.step = Some(step);
                let message = format!("Training continues from the checkpoint at step {step}");
                self.progress.note(EventLevel::Info, message, None).await
            }
            Progress::Step { metrics, tokens_per_second, seconds_left, yielded_seconds } => {
                if let Some(serving) = &self.context.serving_memory {
                    // The run has what it needs.
                    serving.keep_free(0, Duration::ZERO);
                }
                self.progress.step(&metrics, tokens_per_second, seconds_left, yielded_seconds).await
            }
            Progress::Checkpoint { metrics, directory, retained, through } => {
                let published = self.publisher.checkpoint(&metrics, &directory).await;
                let published = match self.publisher.retain(&retained, through).await {
                    // What is not retained has made room.
                    Ok(()) if matches!(published, Err(PublishError::Blobs(BlobError::Full))) => {
                        self.publisher.checkpoint(&metrics, &directory).await
                    }
                    Ok(()) => published,
                    failed => published.and(failed),
                };
                trainer.send(Control::Published { step: metrics.step }).await;
                match published {
                    Ok(()) => Ok(()),
                    Err(PublishError::Store(error)) => Err(error),
                    Err(PublishError::Blobs(error)) => {
                        let message = format!(
                            "The checkpoint at step {} could not be published: {error}; training \
                             continues",
                            metrics.step
                        );
                        self.progress.note(EventLevel::Warn, message, None).await
                    }
                }
            }
            Progress::Finished {
                directory,
                metrics_csv,
                report,
                certificate,
                trained_steps,
                trained_tokens,
            } => {
                return Some(TrainerEnd::Finished(RunOutput {
                    directory,
                    metrics_csv,
                    report,
                    certificate,
                    trained_steps,
                    trained_tokens,
                }));
            }
            Progress::Cancelled { step } => {
                self.progress.step = Some(step);
                return Some(TrainerEnd::Cancelled);
            }
            Progress::Stopped { step } => {
                self.progress.step = Some(step);
                return Some(TrainerEnd::Stopped);
            }
            Progress::Failed { error } => return Some(TrainerEnd::Failed(error)),
            Progress::Pulse { .. } => return None,
            Progress::Short { error, memory } => return Some(TrainerEnd::Short { error, memory }),
            Progress::DryRunDone { .. } => {
                let reason = "the result of a dry run, which was not requested";
                return Some(TrainerEnd::Malformed(reason.to_owned()));
            }
        };
        self.is_claim_lost(written).then_some(TrainerEnd::ClaimLost)
    }

    /// Whether a write found the claim lost. Training continues through other failures of the store:
    /// what could not be written is logged, and the job's outcome is written until that succeeds.
    fn is_claim_lost(&self, written: Result<(), StoreError>) -> bool {
        match written {
            Ok(()) => false,
            Err(StoreError::LostClaim(_)) => true,
            Err(error) => {
                tracing::error!(job.id = self.job.id, %error, "progress could not be written");
                false
            }
        }
    }
}

/// Step of the newest checkpoint of a run; a folder that cannot be read has none.
fn newest_checkpoint(work_dir: &Path) -> Option<u64> {
    checkpoint::steps(work_dir).ok()?.first().copied()
}

/// Waits until requests are being answered, or are not any more, other than `known`; for ever where jobs
/// do not yield to serving.
async fn change_of_serving_load(context: &ExecutorContext, known: bool) -> bool {
    match &context.yields_to {
        Some(serving_load) => serving_load.change_from(known).await,
        None => std::future::pending().await,
    }
}
