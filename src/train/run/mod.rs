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

use std::collections::BTreeSet;

use self::baseline::Baseline;
use self::batches::BatchOrder;
use self::certificate::ReferenceLogits;
pub use self::channels::{Controls, Sink};
use self::checkpoint::RunState;
use self::errors::{checkpoint_failed, engine_failed};
use self::learning_rate::learning_rate;
use self::notices::note;
use self::objective::Objective;
use self::setup::{RunSetup, prepare};
use self::step_timer::StepTimer;
use self::yielding::YieldToServing;
use crate::domain::job::{EventLevel, JobError};
use crate::train::engine::{BackendKind, Engine};
use crate::train::protocol::{Control, Progress, RunSpec};

/// Runs `spec` to its end and says so: the last message is `Finished`, `Cancelled`, `Stopped` or
/// `Failed`.
pub fn run(spec: &RunSpec, backend: BackendKind, sink: &mut Sink<'_>, controls: &mut Controls<'_>) {
    match try_run(spec, backend, sink, controls) {
        Ok(last) => sink(last),
        Err(error) => sink(Progress::Failed { error }),
    }
}

fn try_run(
    spec: &RunSpec,
    backend: BackendKind,
    sink: &mut Sink<'_>,
    controls: &mut Controls<'_>,
) -> Result<Progress, JobError> {
    let (setup, mut engine) = prepare(spec, backend, sink)?;
    let _lock = checkpoint::lock(&spec.work_dir, || {
        let message = "An earlier trainer of this job is ending; this one waits for it".to_owned();
        note(sink, EventLevel::Info, message, None);
    })
    .map_err(checkpoint_failed)?;
    let mut run = Run::new(spec, &setup, engine.as_mut())?;
    run.resume(sink)?;
    let last = run.train(sink, controls)?;
    let reference = run.reference.take();
    if let (Progress::Finished { directory, .. }, Some(reference)) = (&last, reference) {
        // The check loads the base again. The engine goes first, so that memory holds it once.
        drop(engine);
        certificate::issue(spec, &setup, &reference, directory)?;
    }
    Ok(last)
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
    timer: StepTimer,
    /// What the engine computes at the end, for the certificate.
    reference: Option<ReferenceLogits>,
}

impl<'a> Run<'a> {
    fn new(
        spec: &'a RunSpec,
        setup: &'a RunSetup,
        engine: &'a mut dyn Engine,
    ) -> Result<Self, JobError> {
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
            timer: StepTimer::default(),
            reference: None,
        })
    }

    /// The training loop.
    fn train(
        &mut self,
        sink: &mut Sink<'_>,
        controls: &mut Controls<'_>,
    ) -> Result<Progress, JobError> {
        let plan = &self.setup.plan;
        let mut eta = self.eta();
        if let Some(ended) = self.stop_if_requested(controls)? {
            return Ok(ended);
        }
        while let Some(step) = self.next_step() {
            let rate = learning_rate(&plan.hyperparameters, step, plan.total_steps);
            let batch = self.batches.of(step);
            let Some(losses) = self.accumulate(step, &batch, controls)? else {
                return Ok(Progress::Cancelled { step: self.state.step });
            };
            let update = self.clip_and_update(step, rate, &batch)?;
            let mut metrics = self.metrics(step, &batch, &losses, &update);
            let is_improvement = self.evaluate(&mut metrics, sink)?;
            self.diagnose(&metrics, sink)?;
            self.log(metrics, &batch, &mut eta, sink);
            self.save(step, is_improvement, sink)?;
            if let Some(ended) = self.stop_if_requested(controls)? {
                return Ok(ended);
            }
        }
        self.finish(sink)
    }
}
