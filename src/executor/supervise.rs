//! One claimed job from its claim to its ending: stage, start a trainer, listen, publish.

use std::path::Path;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::ending::Ending;
use super::heartbeat::{Heartbeat, Wish};
use super::publish::{self, Finished, PublishError};
use super::report::Report;
use super::trainer::{Errand, Heard, Trainer};
use super::{Patience, Tools, staging};
use crate::config::Priority;
use crate::domain::error_code::ErrorCode;
use crate::domain::job::{EventLevel, Job, JobError};
use crate::store::{Claim, StoreError};
use crate::train::protocol::{Control, Progress};
use crate::train::run::checkpoint;

/// The last thing that was heard of a trainer.
enum Last {
    /// It is done.
    Finished(Finished),
    /// It ended as told to cancel.
    Cancelled,
    /// It ended as told to stop.
    Stopped,
    /// It cannot go on.
    Failed(JobError),
    /// It ended without a last word.
    Died,
    /// It did not end as told.
    Overdue,
    /// It said something that is no message.
    Garbled(String),
    /// The claim is lost.
    Lost,
}

impl Last {
    /// How long the process may still take to be gone.
    fn grace(&self, patience: Patience) -> Duration {
        match self {
            Self::Finished(_) | Self::Cancelled | Self::Stopped | Self::Failed(_) | Self::Died => {
                patience.exit
            }
            Self::Overdue | Self::Garbled(_) | Self::Lost => Duration::ZERO,
        }
    }
}

/// What the trainer has been told.
#[derive(Debug, Clone, Copy, Default)]
struct Told {
    cancel: bool,
    pause: bool,
    stop: bool,
    /// When it must have ended.
    deadline: Option<Instant>,
}

impl Told {
    fn end_within(&mut self, grace: Duration) {
        let deadline = Instant::now() + grace;
        self.deadline = Some(self.deadline.map_or(deadline, |earlier| earlier.min(deadline)));
    }
}

/// Works on a claimed job until it ends, is given back, or is lost.
pub(super) async fn run_job(
    tools: &Tools,
    claim: &Claim,
    job: &Job,
    shutdown: &CancellationToken,
) -> Ending {
    if job.cancel_requested {
        return Ending::Cancelled;
    }
    if job.pause_requested {
        return Ending::Paused { step: None };
    }
    let mut heartbeat = Heartbeat::start(tools.queue.clone(), claim.clone());
    let mut report = Report::new(tools, claim, job);
    let started = match claim.epoch {
        1 => "Fine-tuning job started",
        _ => "Fine-tuning job started again",
    };
    if is_lost(job, report.note(EventLevel::Info, started.to_owned(), None).await) {
        return Ending::Lost;
    }

    let spec = match staging::stage(tools, job).await {
        Ok(spec) => spec,
        Err(ending) => return ending,
    };
    match heartbeat.wish() {
        Wish::GoOn => {}
        Wish::Cancel => return Ending::Cancelled,
        Wish::Pause => return Ending::Paused { step: None },
        Wish::Lost => return Ending::Lost,
    }
    if shutdown.is_cancelled() {
        return Ending::Released { step: None };
    }

    let began_at = newest_checkpoint(&spec.work_dir);
    let errand = Errand::Run { keeps_priority: tools.priority == Priority::Train };
    let mut trainer = match Trainer::start(&tools.trainer, errand, tools.device, &spec).await {
        Ok(trainer) => trainer,
        Err(error) => {
            let what =
                format!("the trainer {} cannot be started: {error}", tools.trainer.display());
            return Ending::broken(job, ErrorCode::WorkerCrashed, &what, None);
        }
    };
    let mut told = Told::default();
    let last =
        listen(tools, job, &mut trainer, &mut heartbeat, &mut report, shutdown, &mut told).await;
    let death = trainer.end(last.grace(tools.patience)).await;

    match last {
        Last::Finished(finished) => match publish::success(tools, claim, job, &finished).await {
            Ok(success) => Ending::Succeeded(Box::new(success)),
            Err(error) => {
                let what = format!("the results could not be stored: {error}");
                Ending::broken(job, staging::blob_code(&error), &what, None)
            }
        },
        Last::Failed(error) => Ending::Failed(error),
        Last::Lost => Ending::Lost,
        // However it ended: what it was told is what the user or the operator wanted.
        Last::Cancelled | Last::Stopped | Last::Died | Last::Overdue | Last::Garbled(_)
            if told.cancel =>
        {
            Ending::Cancelled
        }
        Last::Stopped if told.pause || told.stop => {
            let written = report.last_step().await;
            if is_lost(job, written) {
                return Ending::Lost;
            }
            let step = report.step;
            if told.pause { Ending::Paused { step } } else { Ending::Released { step } }
        }
        Last::Cancelled | Last::Stopped | Last::Died | Last::Overdue | Last::Garbled(_)
            if told.pause =>
        {
            Ending::Paused { step: None }
        }
        Last::Cancelled | Last::Stopped | Last::Died | Last::Overdue | Last::Garbled(_)
            if told.stop =>
        {
            Ending::Released { step: None }
        }
        Last::Garbled(reason) => {
            let what = format!("the trainer said something that is no message: {reason}");
            Ending::broken(job, ErrorCode::WorkerCrashed, &what, Some(death.data()))
        }
        Last::Cancelled | Last::Stopped | Last::Died | Last::Overdue => {
            let what = death.describe(report.step);
            let newest = newest_checkpoint(&spec.work_dir);
            if let Some(step) = newest.filter(|_| newest > began_at) {
                return Ending::broken_on_the_way(&what, step, death.data());
            }
            Ending::broken(job, ErrorCode::WorkerCrashed, &what, Some(death.data()))
        }
    }
}

/// Step of the newest checkpoint of a run; a folder that cannot be read has none.
fn newest_checkpoint(work_dir: &Path) -> Option<u64> {
    checkpoint::steps(work_dir).ok()?.first().copied()
}

/// Listens to the trainer, the user and the operator until there is nothing more to hear.
async fn listen(
    tools: &Tools,
    job: &Job,
    trainer: &mut Trainer,
    heartbeat: &mut Heartbeat,
    report: &mut Report<'_>,
    shutdown: &CancellationToken,
    told: &mut Told,
) -> Last {
    let mut known = Wish::GoOn;
    let mut is_busy = false;
    loop {
        let deadline = told.deadline;
        tokio::select! {
            heard = trainer.hear() => match heard {
                None => return Last::Died,
                Some(Heard::Garbled(reason)) => return Last::Garbled(reason),
                Some(Heard::Progress(progress)) => {
                    if let Some(last) = handle(tools, job, trainer, report, *progress).await {
                        return last;
                    }
                }
            },
            wish = heartbeat.change_from(known) => {
                known = wish;
                match wish {
                    Wish::GoOn => {}
                    Wish::Lost => return Last::Lost,
                    Wish::Pause => {
                        told.pause = true;
                        told.end_within(tools.patience.pause);
                        trainer.tell(Control::Stop).await;
                    }
                    Wish::Cancel => {
                        told.cancel = true;
                        told.end_within(tools.patience.cancel);
                        trainer.tell(Control::Cancel).await;
                    }
                }
            },
            busy = change_of_demand(tools, is_busy) => {
                is_busy = busy;
                trainer.tell(if busy { Control::PauseMicroBatches } else { Control::ResumeMicroBatches }).await;
            },
            () = shutdown.cancelled(), if !told.stop => {
                told.stop = true;
                told.end_within(tools.patience.stop);
                trainer.tell(Control::Stop).await;
            },
            () = sleep_until(deadline) => return Last::Overdue,
        }
    }
}

/// Waits until answers are being made, or are not any more, other than `known`; for ever where jobs do
/// not yield to them.
async fn change_of_demand(tools: &Tools, known: bool) -> bool {
    match &tools.yields_to {
        Some(demand) => demand.change_from(known).await,
        None => std::future::pending().await,
    }
}

/// Waits for a deadline, for ever when there is none.
async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// Turns a message into rows; returns the trainer's last word when it is one.
async fn handle(
    tools: &Tools,
    job: &Job,
    trainer: &mut Trainer,
    report: &mut Report<'_>,
    progress: Progress,
) -> Option<Last> {
    let written = match progress {
        Progress::Note { level, message, data } => report.note(level, message, data).await,
        Progress::Resolved { hyperparameters, total_steps, explanations } => {
            report.resolved(&hyperparameters, total_steps, explanations).await
        }
        Progress::Resumed { step } => {
            report.step = Some(step);
            let message = format!("Training continues from the checkpoint at step {step}");
            report.note(EventLevel::Info, message, None).await
        }
        Progress::Step { metrics, tokens_per_second, seconds_left, yielded_seconds } => {
            report.step(&metrics, tokens_per_second, seconds_left, yielded_seconds).await
        }
        Progress::Checkpoint { metrics, directory, evicted } => {
            let published =
                publish::checkpoint(tools, report.claim(), job, &metrics, &directory).await;
            let published = match published {
                Ok(()) => publish::take_back(tools, report.claim(), &evicted).await,
                failed => failed,
            };
            trainer.tell(Control::Published { step: metrics.step }).await;
            match published {
                Ok(()) => Ok(()),
                Err(PublishError::Store(error)) => Err(error),
                Err(PublishError::Blobs(error)) => {
                    let message = format!(
                        "The checkpoint at step {} could not be published: {error}; training goes \
                         on",
                        metrics.step
                    );
                    report.note(EventLevel::Warn, message, None).await
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
            let finished = Finished {
                directory,
                metrics_csv,
                report,
                certificate,
                trained_steps,
                trained_tokens,
            };
            return Some(Last::Finished(finished));
        }
        Progress::Cancelled { step } => {
            report.step = Some(step);
            return Some(Last::Cancelled);
        }
        Progress::Stopped { step } => {
            report.step = Some(step);
            return Some(Last::Stopped);
        }
        Progress::Failed { error } => return Some(Last::Failed(error)),
        Progress::DryRunDone { .. } => {
            return Some(Last::Garbled("a preview, which nobody asked for".to_owned()));
        }
    };
    is_lost(job, written).then_some(Last::Lost)
}

/// Whether a write found the claim lost. Training goes on through other trouble of the store: what
/// could not be written is logged, and the job's end is written until it is there.
fn is_lost(job: &Job, written: Result<(), StoreError>) -> bool {
    match written {
        Ok(()) => false,
        Err(StoreError::LostClaim(_)) => true,
        Err(error) => {
            tracing::error!(job.id, %error, "progress could not be written");
            false
        }
    }
}
