//! One run, from a specification to an adapter.
//!
//! The loop reads top to bottom: learning rate for this step → micro-batches → clip and AdamW → log →
//! maybe look at the validation file → maybe checkpoint → maybe stop. It says how it goes in
//! [`Progress`] messages and hears orders between micro-batches; it knows no process, job or socket.

pub mod certificate;
pub mod checkpoint;
mod diagnostics;
pub mod dry_run;
mod early_stopping;
mod errors;
mod eta;
mod evaluation;
pub mod export;
mod finish;
mod general_text;
mod initial_adapter;
pub mod learning_rate;
mod notices;
mod objective;
pub mod plan;
pub mod report;
mod setup;
mod yielding;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Instant;

use self::certificate::Witness;
use self::checkpoint::State;
use self::errors::{checkpoint_failed, engine_failed};
use self::eta::{Kept, Speed};
use self::evaluation::Before;
use self::learning_rate::learning_rate;
use self::notices::{note, warn};
use self::objective::{Material, Measured};
use self::setup::{Prepared, prepare};
use self::yielding::GiveWay;
use super::backend::AdamWStep;
use super::engine::{BackendKind, BatchPart, Engine};
use super::protocol::{Control, Progress, RunSpec};
use super::rng::permutation;
use crate::domain::error_code::ErrorCode;
use crate::domain::job::{EventLevel, JobError, StepMetrics};

/// Checkpoints of a run that are for going on after a crash, beside those that are published and
/// those of the first steps.
const RESUME_POINTS: u64 = 10;

/// Newest checkpoints that stay on the disk: one may be torn.
const NEWEST_KEPT: usize = 2;

/// Who hears the progress.
pub type Sink<'a> = dyn FnMut(Progress) + 'a;

/// Who gives orders; asked between micro-batches.
pub type Orders<'a> = dyn FnMut() -> Option<Control> + 'a;

/// Runs `spec` to its end and says so: the last message is `Finished`, `Cancelled`, `Stopped` or
/// `Failed`.
pub fn run(spec: &RunSpec, backend: BackendKind, sink: &mut Sink<'_>, orders: &mut Orders<'_>) {
    match try_run(spec, backend, sink, orders) {
        Ok(last) => sink(last),
        Err(error) => sink(Progress::Failed { error }),
    }
}

fn try_run(
    spec: &RunSpec,
    backend: BackendKind,
    sink: &mut Sink<'_>,
    orders: &mut Orders<'_>,
) -> Result<Progress, JobError> {
    let (prepared, mut engine) = prepare(spec, backend, sink)?;
    let _hold = checkpoint::hold(&spec.work_dir, || {
        let message = "An earlier trainer of this job is ending; this one waits for it".to_owned();
        note(sink, EventLevel::Info, message, None);
    })
    .map_err(checkpoint_failed)?;
    let mut run = Run::new(spec, &prepared, engine.as_mut())?;
    run.take_up(sink)?;
    let last = run.train(sink, orders)?;
    let witness = run.witness.take();
    if let (Progress::Finished { directory, .. }, Some(witness)) = (&last, witness) {
        // The base is loaded anew: there should not be two of it.
        drop(engine);
        certificate::issue(spec, &prepared, &witness, directory)?;
    }
    Ok(last)
}

/// A run under way.
struct Run<'a> {
    spec: &'a RunSpec,
    prepared: &'a Prepared,
    training: Material<'a>,
    validation: Option<Material<'a>>,
    state: State,
    engine: &'a mut dyn Engine,
    /// What the base was like, where its own weights train and it cannot be asked later.
    before: Option<Before>,
    /// The epoch whose order is at hand, and the order.
    order: (u64, Vec<usize>),
    /// Checkpoints that were announced and whose files nobody has copied yet.
    unpublished: BTreeSet<u64>,
    /// What was ordered and is not done yet.
    ordered: Option<Control>,
    /// Waiting for answers.
    give_way: GiveWay,
    /// What the engine computed at the end, for the certificate.
    witness: Option<Witness>,
}

impl<'a> Run<'a> {
    fn new(
        spec: &'a RunSpec,
        prepared: &'a Prepared,
        engine: &'a mut dyn Engine,
    ) -> Result<Self, JobError> {
        let beta = prepared.plan.hyperparameters.beta;
        // Preferences are measured against what the run begins with: the base, or the model that
        // it continues from.
        let mut material =
            |file| Material::new(file, beta, prepared.is_continued, engine).map_err(engine_failed);
        let training = material(&prepared.training)?;
        let validation = prepared.validation.as_ref().map(material).transpose()?;
        let state = State::new(prepared.identity.clone(), training.len());
        let mut before = None;
        if !engine.keeps_base() {
            before = Some(Before::ask(prepared, engine)?);
        }
        Ok(Self {
            spec,
            prepared,
            training,
            validation,
            state,
            engine,
            before,
            order: (u64::MAX, Vec::new()),
            unpublished: BTreeSet::new(),
            ordered: None,
            give_way: GiveWay::default(),
            witness: None,
        })
    }

    /// Goes on from the newest whole checkpoint, if there is one. Those that are kept are announced
    /// again: nobody may have heard the first time.
    fn take_up(&mut self, sink: &mut Sink<'_>) -> Result<(), JobError> {
        let work_dir = &self.spec.work_dir;
        let search =
            checkpoint::newest(work_dir, &self.state.identity).map_err(checkpoint_failed)?;
        for message in search.passed_over {
            warn(sink, format!("{message}; an earlier state is used"));
        }
        let Some(found) = search.found else {
            return Ok(());
        };
        checkpoint::restore(&found.folder, self.engine).map_err(checkpoint_failed)?;
        self.state = found.state;
        sink(Progress::Resumed { step: self.state.step });
        for step in self.state.kept.clone() {
            let directory = checkpoint::folder(work_dir, step);
            if checkpoint::is_whole(&directory) {
                self.announce(step, directory, Vec::new(), sink);
            }
        }
        Ok(())
    }

    fn train(
        &mut self,
        sink: &mut Sink<'_>,
        orders: &mut Orders<'_>,
    ) -> Result<Progress, JobError> {
        let plan = &self.prepared.plan;
        let total = plan.total_steps;
        let mut kept = self.kept();
        let mut speed = Speed::new(self.cost_left(kept.clone()));
        while self.state.step < total && !self.is_over() {
            match self.hear(orders) {
                Some(Control::Cancel) => {
                    return Ok(Progress::Cancelled { step: self.state.step });
                }
                Some(Control::Stop) => {
                    self.checkpoint()?;
                    return Ok(Progress::Stopped { step: self.state.step });
                }
                Some(
                    Control::Published { .. }
                    | Control::PauseMicroBatches
                    | Control::ResumeMicroBatches,
                )
                | None => {}
            }
            let (began, waited) = (Instant::now(), self.give_way.waited);
            let step = self.state.step + 1;
            let rate = learning_rate(&plan.hyperparameters, step, total);
            let batch = self.batch(step);
            let tokens: usize = batch.iter().map(|index| self.training.tokens(*index)).sum();

            let Some(sums) = self.accumulate(step, &batch, orders)? else {
                return Ok(Progress::Cancelled { step: self.state.step });
            };
            if !sums.loss.is_finite() {
                return Err(self.nan_loss(step, "loss", &batch));
            }
            let grad_norm = self.engine.step(&self.adamw(step, rate)).map_err(engine_failed)?;
            if !grad_norm.is_finite() {
                return Err(self.nan_loss(step, "gradient", &batch));
            }
            let took = began.elapsed().saturating_sub(self.give_way.waited - waited);
            let tokens_per_second = tokens as f64 / took.as_secs_f64().max(1e-9);

            self.state.step = step;
            self.state.trained_tokens += tokens as u64;
            let is_preferences = self.training.is_preferences();
            let mut metrics = StepMetrics {
                step,
                train_loss: sums.mean_loss(),
                train_mean_token_accuracy: sums.accuracy(),
                reward_margin: is_preferences.then(|| sums.mean_margin()),
                learning_rate: rate,
                epoch: step as f64 / plan.steps_per_epoch as f64,
                grad_norm,
                ..StepMetrics::default()
            };
            let is_epoch_end = step.is_multiple_of(plan.steps_per_epoch);
            let is_better = self.look(&mut metrics, sink)?;
            self.state.metrics.push(metrics.clone());
            self.watch_health(&metrics, is_epoch_end, sink)?;
            speed.has_done(self.cost_of_step(&batch, &mut kept));
            if metrics.full_valid_loss.is_some() {
                speed.has_done(self.cost_of_look(&mut kept));
            }
            let seconds_left = speed.seconds_left();
            let yielded_seconds = self.give_way.waited.as_secs_f64();
            sink(Progress::Step { metrics, tokens_per_second, seconds_left, yielded_seconds });

            if plan.saves_after(step) || is_better {
                let evicted = self.keep();
                let directory = self.checkpoint()?;
                self.announce(step, directory, evicted, sink);
                self.remove_old_checkpoints()?;
            } else if is_resume_point(step, total) {
                self.checkpoint()?;
                self.remove_old_checkpoints()?;
            }
        }
        self.conclude(sink)
    }

    /// Takes in all orders that have come, and waits if one of them says so; the one that is to be
    /// carried out.
    fn hear(&mut self, orders: &mut Orders<'_>) -> Option<Control> {
        let began = Instant::now();
        self.take_in(orders);
        while self.ordered.is_none() && self.give_way.waits(began) {
            self.take_in(orders);
        }
        self.ordered
    }

    fn take_in(&mut self, orders: &mut Orders<'_>) {
        while let Some(order) = orders() {
            match order {
                Control::Published { step } => {
                    self.unpublished.remove(&step);
                }
                Control::PauseMicroBatches => self.give_way.asked = true,
                Control::ResumeMicroBatches => self.give_way.asked = false,
                Control::Cancel => self.ordered = Some(order),
                Control::Stop => {
                    self.ordered.get_or_insert(order);
                    // A supervisor that is gone orders it for ever.
                    break;
                }
            }
        }
    }

    /// The examples of a step, by index: those of its place in the epoch's random order.
    fn batch(&mut self, step: u64) -> Vec<usize> {
        let plan = &self.prepared.plan;
        let epoch = (step - 1) / plan.steps_per_epoch;
        let examples = self.training.len();
        if self.order.0 != epoch {
            let seed = u64::from(self.spec.seed);
            self.order = (epoch, permutation(seed, "examples", epoch, examples));
        }
        let size = plan.hyperparameters.batch_size as usize;
        let first = ((step - 1) % plan.steps_per_epoch) as usize * size;
        self.order.1[first..(first + size).min(examples)].to_vec()
    }

    /// Forward and backward over a batch, in micro-batches; `None` when it was cancelled between
    /// them. The gradients are those of the mean over the whole batch.
    fn accumulate(
        &mut self,
        step: u64,
        batch: &[usize],
        orders: &mut Orders<'_>,
    ) -> Result<Option<Measured>, JobError> {
        let mut part = BatchPart::whole(step, self.training.units(batch));
        let mut sums = Measured::default();
        for examples in self.training.micro_batches(self.engine, batch) {
            // A stop waits for the end of the step; a cancel does not.
            if part.first > 0 && self.hear(orders) == Some(Control::Cancel) {
                return Ok(None);
            }
            let made =
                self.training.accumulate(self.engine, examples, part).map_err(engine_failed)?;
            for (index, one) in examples.iter().zip(&made) {
                self.state.example_losses[*index] = Some(one.mean_loss() as f32);
                sums.add(one);
            }
            part.first += examples.len();
        }
        Ok(Some(sums))
    }

    /// Floating-point operations of the steps and looks that are left, unless training ends early.
    fn cost_left(&mut self, mut kept: Kept) -> f64 {
        let mut left = 0.0;
        for step in self.state.step + 1..=self.prepared.plan.total_steps {
            let batch = self.batch(step);
            left += self.cost_of_step(&batch, &mut kept);
            if self.prepared.plan.looks_after(step) {
                left += self.cost_of_look(&mut kept);
            }
        }
        left
    }

    fn cost_of_step(&self, batch: &[usize], kept: &mut Kept) -> f64 {
        batch.iter().map(|index| self.training.cost(*index, kept.sees(*index))).sum()
    }

    /// Of one look at the validation file.
    fn cost_of_look(&self, kept: &mut Kept) -> f64 {
        let Some(validation) = &self.validation else { return 0.0 };
        validation.cost_of_evaluation(kept.sees_validation())
    }

    /// What the engine keeps of frozen blocks as training begins.
    fn kept(&self) -> Kept {
        let files = [Some(&self.training), self.validation.as_ref()];
        let tokens = files.into_iter().flatten().map(Material::all_tokens).sum();
        let has_seen = self.training.is_preferences();
        Kept::new(self.engine.frozen_use().room, tokens, self.training.len(), has_seen)
    }

    fn adamw(&self, step: u64, learning_rate: f64) -> AdamWStep {
        let values = &self.prepared.plan.hyperparameters;
        AdamWStep {
            learning_rate,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            weight_decay: values.weight_decay,
            clip: values.max_grad_norm,
            step,
        }
    }

    /// Whether training ends early.
    fn is_over(&self) -> bool {
        let patience = self.prepared.plan.hyperparameters.early_stopping_patience;
        self.state.watch.is_over(patience)
    }

    fn checkpoint(&mut self) -> Result<PathBuf, JobError> {
        let Self { spec, prepared, state, engine, .. } = self;
        checkpoint::write(&spec.work_dir, &**engine, &prepared.product(), state)
            .map_err(checkpoint_failed)
    }

    /// Keeps the checkpoint of this step for the user; the steps whose checkpoints are too many now.
    /// The best one always stays. Where it is stated how many there shall be, those count alone, and
    /// others go as soon as they are not the best any more.
    fn keep(&mut self) -> Vec<u64> {
        let plan = &self.prepared.plan;
        let limit = plan.hyperparameters.save_total_limit as usize;
        let counts =
            |step: u64| plan.hyperparameters.n_checkpoints.is_none() || plan.saves_after(step);
        let best = self.state.watch.best.map(|look| look.step);
        let kept = &mut self.state.kept;
        kept.push(self.state.step);
        let counted = kept.iter().filter(|step| counts(**step)).count();
        let newest = counted.saturating_sub(limit.max(1));
        let mut evicted = Vec::new();
        let mut place = 0;
        kept.retain(|step| {
            place += usize::from(counts(*step));
            let stays = (counts(*step) && place > newest) || Some(*step) == best;
            if !stays {
                evicted.push(*step);
            }
            stays
        });
        evicted
    }

    /// Says that the checkpoint of `step` lies in `directory`.
    fn announce(&mut self, step: u64, directory: PathBuf, evicted: Vec<u64>, sink: &mut Sink<'_>) {
        let Some(metrics) = self.state.metrics.get(step as usize - 1).cloned() else {
            return;
        };
        self.unpublished.insert(step);
        sink(Progress::Checkpoint { metrics, directory, evicted });
    }

    /// Keeps the newest checkpoints, the best, and those that are not yet published.
    fn remove_old_checkpoints(&self) -> Result<(), JobError> {
        let work_dir = &self.spec.work_dir;
        let best = self.state.watch.best.map(|look| look.step);
        let steps = checkpoint::steps(work_dir).map_err(checkpoint_failed)?;
        let passed = steps.into_iter().filter(|step| *step <= self.state.step);
        for step in passed.skip(NEWEST_KEPT) {
            if Some(step) != best && !self.unpublished.contains(&step) {
                checkpoint::remove(work_dir, step).map_err(checkpoint_failed)?;
            }
        }
        Ok(())
    }

    fn nan_loss(&self, step: u64, what: &str, batch: &[usize]) -> JobError {
        let lines = &self.training.file().lines;
        let lines: Vec<String> = batch.iter().map(|index| lines[*index].to_string()).collect();
        JobError {
            code: ErrorCode::NanLoss,
            message: format!(
                "the {what} of step {step} is not a finite number; its batch holds the examples of \
                 lines {} of the training file. Lower the learning rate, or look at these examples",
                lines.join(", ")
            ),
            param: None,
        }
    }
}

/// Whether a step is saved for going on after a crash: so many of a run, and the first steps at ever
/// longer intervals, so that a run that is disturbed early makes its way too.
fn is_resume_point(step: u64, total: u64) -> bool {
    step.is_power_of_two() || step.is_multiple_of(total.div_ceil(RESUME_POINTS))
}
