//! One run, from a specification to a trained model.
//!
//! [`Run::train`] is the loop: learning rate → micro-batches → clip and AdamW → metrics → evaluate →
//! checkpoint → stop. [`setup`] makes what it needs (a dry run shares it), `finish` writes what it
//! leaves. A run says how it goes in [`Progress`] messages and reads [`Control`] messages between
//! micro-batches. It knows no process, job or socket.

mod baseline;
mod batches;
pub mod certificate;
mod channels;
mod chat_template;
pub mod checkpoint;
pub mod checkpoint_error;
mod checkpoint_retention;
mod controls;
mod diagnostics;
pub mod dry_run;
mod early_stopping;
mod errors;
mod eta;
mod evaluation;
pub mod export;
mod findings;
mod finish;
mod general_text;
mod initial_adapter;
pub mod learning_rate;
mod notices;
mod objective;
pub mod plan;
pub mod report;
mod resume;
mod setup;
mod step;
mod step_timer;
mod yielding;

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use self::baseline::Baseline;
use self::batches::BatchOrder;
use self::certificate::ReferenceLogits;
pub use self::channels::{Controls, Sink};
use self::checkpoint::{RunState, WorkDirLock};
use self::errors::{RunError, checkpoint_failed, engine_failed};
use self::learning_rate::learning_rate;
use self::notices::note;
use self::objective::Objective;
use self::setup::{RunSetup, prepare};
use self::step_timer::StepTimer;
use self::yielding::YieldToServing;
use crate::domain::job::EventLevel;
use crate::train::engine::{BackendKind, Engine};
use crate::train::protocol::{Control, Progress, RunSpec};

/// Runs `spec` to its end and says so: the last message is `Finished`, `Cancelled`, `Stopped` or
/// `Failed`.
pub fn run(spec: &RunSpec, backend: BackendKind, sink: &mut Sink<'_>, controls: &mut Controls<'_>) {
    // An earlier trainer of the job holds its memory until its end, so the folder is taken before the memory
    // is judged. It is held until the certificate is there: another trainer must not write into it before.
    let mut early = VecDeque::new();
    let _lock = match wait_for_folder(spec, &mut early, sink, controls) {
        Ok(lock) => lock,
        Err(last) => return sink(*last),
    };
    let controls = &mut || early.pop_front().or_else(&mut *controls);
    let (setup, mut engine) = match prepare(spec, backend, sink) {
        Ok(prepared) => prepared,
        Err(error) => return sink(error.into_progress()),
    };
    let ended = train(spec, &setup, engine.as_mut(), sink, controls);
    let Some((last, reference)) = report_failure(engine, ended, sink) else { return };
    let checked = match (&last, reference) {
        (Progress::Finished { directory, .. }, Some(reference)) => {
            certificate::issue(spec, &setup, &reference, directory).map(|_path| ())
        }
        _ => Ok(()),
    };
    match checked {
        Ok(()) => sink(last),
        Err(error) => sink(error.into_progress()),
    }
}

/// Takes the run's folder, as soon as an earlier trainer of the job has ended; the run's last message when it
/// is told to end before. Controls that come meanwhile are kept in `early`.
fn wait_for_folder(
    spec: &RunSpec,
    early: &mut VecDeque<Control>,
    sink: &mut Sink<'_>,
    controls: &mut Controls<'_>,
) -> Result<WorkDirLock, Box<Progress>> {
    let mut is_said = false;
    let mut requested = None;
    let locked = checkpoint::lock(&spec.work_dir, || {
        if !is_said {
            is_said = true;
            let message = "An earlier trainer of this job is ending; this one waits for it";
            note(sink, EventLevel::Info, message.to_owned(), None);
        }
        while let Some(control) = controls() {
            match control {
                Control::Stop | Control::Cancel => {
                    requested = Some(control);
                    return false;
                }
                other => early.push_back(other),
            }
        }
        true
    });
    match locked {
        Ok(Some(lock)) => Ok(lock),
        Ok(None) => {
            let steps = checkpoint::steps(&spec.work_dir).unwrap_or_default();
            let step = steps.first().copied().unwrap_or(0);
            Err(Box::new(match requested {
                Some(Control::Cancel) => Progress::Cancelled { step },
                _ => Progress::Stopped { step },
            }))
        }
        Err(error) => Err(Box::new(checkpoint_failed(error).into_progress())),
    }
}

/// Drops the engine: the certificate loads the base again, and memory holds it once. A failure is reported before:
/// after some faults of a device nothing of it can be released any more, and dropping panics.
fn report_failure<E, T>(engine: E, ended: Result<T, RunError>, sink: &mut Sink<'_>) -> Option<T> {
    let ended = ended.map_err(|error| sink(error.into_progress())).ok();
    drop(engine);
    ended
}

/// Trains to the end of the run; its last message, and what the certificate compares.
fn train(
    spec: &RunSpec,
    setup: &RunSetup,
    engine: &mut dyn Engine,
    sink: &mut Sink<'_>,
    controls: &mut Controls<'_>,
) -> Result<(Progress, Option<ReferenceLogits>), RunError> {
    let mut run = Run::new(spec, setup, engine)?;
    run.resume(sink)?;
    let last = run.train(sink, controls)?;
    Ok((last, run.reference.take()))
}

/// A run under way.
struct Run<'a> {
    spec: &'a RunSpec,
    setup: &'a RunSetup,
    training: Objective<'a>,
    validation: Option<Objective<'a>>,
    state: RunState,
    engine: &'a mut dyn Engine,
    /// What the base was like, where its own weights train and it cannot be asked later.
    baseline: Option<Baseline>,
    batches: BatchOrder,
    /// Retained checkpoints whose files the supervisor has not copied yet.
    unpublished: BTreeSet<u64>,
    /// A cancel or stop that has come and is not carried out yet.
    requested: Option<Control>,
    yielding: YieldToServing,
    /// What the slowest micro-batch took.
    slowest: Duration,
    timer: StepTimer,
    /// What the engine computes at the end, for the certificate.
    reference: Option<ReferenceLogits>,
}

impl<'a> Run<'a> {
    fn new(
        spec: &'a RunSpec,
        setup: &'a RunSetup,
        engine: &'a mut dyn Engine,
    ) -> Result<Self, RunError> {
        let beta = setup.plan.hyperparameters.beta;
        // Preferences are measured against the model that the run begins with: the base, or the
        // model that the job continues from.
        let mut objective =
            |file| Objective::new(file, beta, setup.is_continued, engine).map_err(engine_failed);
        let training = objective(&setup.training)?;
        let validation = setup.validation.as_ref().map(objective).transpose()?;
        let mut baseline = None;
        if !engine.has_base() {
            baseline = Some(Baseline::measure(setup, engine)?);
        }
        Ok(Self {
            spec,
            setup,
            state: RunState::new(setup.identity.clone(), training.len()),
            batches: BatchOrder::new(spec.seed, &setup.plan, training.len()),
            training,
            validation,
            engine,
            baseline,
            unpublished: BTreeSet::new(),
            requested: None,
            yielding: YieldToServing::default(),
            slowest: Duration::ZERO,
            timer: StepTimer::default(),
            reference: None,
        })
    }

    /// The training loop.
    fn train(
        &mut self,
        sink: &mut Sink<'_>,
        controls: &mut Controls<'_>,
    ) -> Result<Progress, RunError> {
        let plan = &self.setup.plan;
        if let Some(metrics) = self.state.unevaluated.take() {
            let mut eta = self.eta();
            if let Some(ended) = self.conclude_step(metrics, &mut eta, sink, controls)? {
                return Ok(ended);
            }
        }
        let mut eta = self.eta();
        if let Some(ended) = self.stop_if_requested(controls)? {
            return Ok(ended);
        }
        while let Some(step) = self.next_step() {
            let rate = learning_rate(&plan.hyperparameters, step, plan.total_steps);
            let batch = self.batches.of(step);
            let Some(losses) = self.accumulate(step, &batch, controls)? else {
                return self.stop();
            };
            let update = self.clip_and_update(step, rate, &batch)?;
            let metrics = self.metrics(step, &batch, &losses, &update);
            if let Some(ended) = self.conclude_step(metrics, &mut eta, sink, controls)? {
                return Ok(ended);
            }
        }
        self.finish(sink)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::domain::error_code::ErrorCode;
    use crate::domain::job::JobError;

    /// As cuBLAS's handle after an illegal address: dropping it panics.
    struct Broken<'a>(&'a Cell<bool>);

    impl Drop for Broken<'_> {
        fn drop(&mut self) {
            assert!(self.0.get(), "dropped before the failure was reported");
        }
    }

    #[test]
    fn a_failure_is_reported_before_the_engine_is_dropped() {
        let is_reported = Cell::new(false);
        let mut said = String::new();
        let mut sink = |progress: Progress| {
            let Progress::Failed { error } = progress else { panic!("{progress:?}") };
            said = error.message;
            is_reported.set(true);
        };
        let error = JobError {
            code: ErrorCode::InternalError,
            message: "CUDA_ERROR_ILLEGAL_ADDRESS".to_owned(),
            param: None,
        };
        assert_eq!(
            report_failure::<_, ()>(Broken(&is_reported), Err(error.into()), &mut sink),
            None
        );
        assert_eq!(said, "CUDA_ERROR_ILLEGAL_ADDRESS");
    }
}
