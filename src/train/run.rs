//! One run, from a specification to an adapter.
//!
//! The loop reads top to bottom: learning rate for this step → micro-batches → clip and AdamW → log →
//! maybe evaluate → maybe checkpoint → maybe stop. It says how it goes in [`Progress`] messages and
//! asks for orders between micro-batches; it knows no process, job or socket.

use std::path::PathBuf;
use std::time::Instant;

use super::base_model::BaseModel;
use super::checkpoint::{self, Identity, State};
use super::config::ModelConfig;
use super::encode::{EncodedFile, encode_file};
use super::engine::{
    AdamWStep, BackendKind, Engine, LoraSettings, LoraTarget, LossSums, Part, Sequence,
    TOKENS_AT_ONCE, load,
};
use super::failure::{
    cannot_load, checkpoint_failed, engine_failed, internal, invalid_file, invalid_model,
    no_such_target, no_validation_example, too_few,
};
use super::memory;
use super::protocol::{Control, Progress, RunSpec};
use super::random::permutation;
use super::resolve::{self, ModelSize, Plan};
use super::schedule::learning_rate;
use crate::artifacts::metrics_csv;
use crate::artifacts::peft::AdapterConfig;
use crate::atomic_file;
use crate::dataset::{MAX_LISTED_PROBLEMS, MIN_EXAMPLES};
use crate::error_code::ErrorCode;
use crate::job::{DataFile, EventLevel, JobError, StepMetrics};

/// Checkpoints of a run that are for going on after a crash, beside those of each epoch.
const RESUME_POINTS: u64 = 10;

/// Looks at one validation batch in each epoch, beside the whole file at its end.
const EVALUATIONS_PER_EPOCH: u64 = 4;

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
    let base = BaseModel::open(&spec.base_model).map_err(invalid_model)?;
    let model = ModelConfig::read(&base.config).map_err(invalid_model)?;
    let size = ModelSize { context: model.context_length, layers: model.layers as u32 };
    if let Some(message) = resolve::unknown_layer(&spec.hyperparameters, size.layers) {
        return Err(no_such_target(message));
    }
    let context = resolve::context_length(&spec.hyperparameters, size.context) as usize;

    let training = encode_file(&spec.training_file, &base, context)
        .map_err(|error| invalid_file(error, DataFile::Training))?;
    let validation = match &spec.validation_file {
        Some(path) => Some(
            encode_file(path, &base, context)
                .map_err(|error| invalid_file(error, DataFile::Validation))?,
        ),
        None => None,
    };
    say_too_long(&training, "training", context, sink);
    if let Some(validation) = &validation {
        say_too_long(validation, "validation", context, sink);
        if validation.sequences.is_empty() {
            return Err(no_validation_example(context));
        }
    }
    let examples = training.sequences.len() as u64;
    if examples < MIN_EXAMPLES {
        return Err(too_few(examples, &training, context));
    }

    let plan = resolve::resolve(&spec.hyperparameters, examples, &size);
    sink(plan.progress());
    let values = &plan.hyperparameters;
    let lora = LoraSettings {
        is_rank_stabilised: values.use_rslora,
        target: LoraTarget {
            modules: values.lora_target_modules.clone(),
            layers: values.lora_layers.clone(),
        },
        ..LoraSettings::new(values.lora_r as usize, values.lora_alpha)
    };
    memory::check(&base, &training, validation.as_ref(), backend)?;
    let mut engine =
        load(&base.config, base.weights.as_ref(), &lora, u64::from(spec.seed), backend)
            .map_err(cannot_load)?;
    say_statistics(&training, engine.as_ref(), sink);

    let identity = Identity {
        model: base.digest.clone(),
        training_file: training.digest.clone(),
        validation_file: validation.as_ref().map(|file| file.digest.clone()),
        seed: spec.seed,
        hyperparameters: values.clone(),
    };
    let is_gpt2 = base.config["model_type"] == "gpt2";
    let modules = engine.adapted_modules();
    let adapter = AdapterConfig {
        layers_to_transform: lora.target.layers.clone(),
        use_rslora: lora.is_rank_stabilised,
        ..AdapterConfig::new(&spec.base_model_id, lora.rank, lora.alpha, &modules, is_gpt2)
    };
    let mut run = Run {
        spec,
        plan: &plan,
        training: &training,
        validation: validation.as_ref(),
        adapter,
        state: State { identity, step: 0, trained_tokens: 0, metrics: Vec::new() },
        order: (u64::MAX, Vec::new()),
        engine: engine.as_mut(),
    };
    let _hold = checkpoint::hold(&spec.work_dir, || {
        let message = "An earlier trainer of this job is ending; this one waits for it".to_owned();
        note(sink, EventLevel::Info, message, None);
    })
    .map_err(checkpoint_failed)?;
    run.take_up(sink)?;
    run.train(sink, orders)
}

/// A run under way.
struct Run<'a> {
    spec: &'a RunSpec,
    plan: &'a Plan,
    training: &'a EncodedFile,
    validation: Option<&'a EncodedFile>,
    adapter: AdapterConfig,
    state: State,
    /// The epoch whose order is at hand, and the order.
    order: (u64, Vec<usize>),
    engine: &'a mut dyn Engine,
}

impl Run<'_> {
    /// Goes on from the newest whole checkpoint, if there is one.
    fn take_up(&mut self, sink: &mut Sink<'_>) -> Result<(), JobError> {
        let search = checkpoint::newest(&self.spec.work_dir, &self.state.identity)
            .map_err(checkpoint_failed)?;
        for message in search.passed_over {
            warn(sink, format!("{message}; an earlier state is used"));
        }
        let Some(found) = search.found else {
            return Ok(());
        };
        checkpoint::restore(&found.folder, self.engine).map_err(checkpoint_failed)?;
        self.state = found.state;
        sink(Progress::Resumed { step: self.state.step });
        Ok(())
    }

    fn train(
        &mut self,
        sink: &mut Sink<'_>,
        orders: &mut Orders<'_>,
    ) -> Result<Progress, JobError> {
        let total = self.plan.total_steps;
        let mut speed = Speed::new();
        let mut has_warned = false;
        while self.state.step < total {
            match orders() {
                Some(Control::Cancel) => {
                    return Ok(Progress::Cancelled { step: self.state.step });
                }
                Some(Control::Stop) => {
                    self.checkpoint()?;
                    return Ok(Progress::Stopped { step: self.state.step });
                }
                None => {}
            }
            let began = Instant::now();
            let step = self.state.step + 1;
            let rate = learning_rate(&self.plan.hyperparameters, step, total);
            let batch = self.batch(step);
            let sequences: Vec<&Sequence> =
                batch.iter().map(|index| &self.training.sequences[*index]).collect();
            let tokens: usize = sequences.iter().map(|sequence| sequence.input_ids.len()).sum();

            let Some(sums) = self.accumulate(&sequences, orders)? else {
                return Ok(Progress::Cancelled { step: self.state.step });
            };
            let loss = sums.loss / sums.tokens.max(1) as f64;
            if !loss.is_finite() {
                return Err(self.nan_loss(step, "loss", &batch));
            }
            let grad_norm = self.engine.step(&self.adamw(step, rate)).map_err(engine_failed)?;
            if !grad_norm.is_finite() {
                return Err(self.nan_loss(step, "gradient", &batch));
            }
            let tokens_per_second = tokens as f64 / began.elapsed().as_secs_f64().max(1e-9);

            self.state.step = step;
            self.state.trained_tokens += tokens as u64;
            let mut metrics = StepMetrics {
                step,
                train_loss: loss,
                train_mean_token_accuracy: sums.correct as f64 / sums.tokens.max(1) as f64,
                learning_rate: rate,
                epoch: step as f64 / self.plan.steps_per_epoch as f64,
                grad_norm,
                ..StepMetrics::default()
            };
            let is_epoch_end = step.is_multiple_of(self.plan.steps_per_epoch);
            self.validate(&mut metrics, is_epoch_end)?;
            if !has_warned {
                has_warned = self.warn_of_divergence(&metrics, sink);
            }
            speed.step_ended();
            let seconds_left = speed.seconds_per_step() * (total - step) as f64;
            self.state.metrics.push(metrics.clone());
            sink(Progress::Step { metrics: metrics.clone(), tokens_per_second, seconds_left });

            if is_epoch_end {
                let directory = self.checkpoint()?;
                sink(Progress::Checkpoint { metrics, directory });
            } else if step.is_multiple_of(total.div_ceil(RESUME_POINTS)) {
                self.checkpoint()?;
                self.remove_old_checkpoints()?;
            }
        }
        self.finish()
    }

    /// The examples of a step, by index: those of its place in the epoch's random order.
    fn batch(&mut self, step: u64) -> Vec<usize> {
        let examples = self.training.sequences.len();
        let epoch = (step - 1) / self.plan.steps_per_epoch;
        if self.order.0 != epoch {
            let seed = u64::from(self.spec.seed);
            self.order = (epoch, permutation(seed, "examples", epoch, examples));
        }
        let size = self.plan.hyperparameters.batch_size as usize;
        let first = ((step - 1) % self.plan.steps_per_epoch) as usize * size;
        self.order.1[first..(first + size).min(examples)].to_vec()
    }

    /// Forward and backward over a batch, in micro-batches; `None` when it was cancelled between
    /// them. The gradients are those of the mean over all loss-bearing tokens of the batch.
    fn accumulate(
        &mut self,
        sequences: &[&Sequence],
        orders: &mut Orders<'_>,
    ) -> Result<Option<LossSums>, JobError> {
        let total = sequences.iter().map(|sequence| loss_tokens(sequence)).sum();
        let mut here = Part::whole(self.state.step + 1, total);
        let mut sums = LossSums::default();
        for (index, part) in micro_batches(sequences).into_iter().enumerate() {
            // A stop waits for the end of the step; a cancel does not.
            if index > 0 && orders() == Some(Control::Cancel) {
                return Ok(None);
            }
            add(&mut sums, self.engine.accumulate(part, here).map_err(engine_failed)?);
            here.first += part.len();
        }
        Ok(Some(sums))
    }

    fn adamw(&self, step: u64, learning_rate: f64) -> AdamWStep {
        AdamWStep {
            learning_rate,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            weight_decay: self.plan.hyperparameters.weight_decay,
            clip: self.plan.hyperparameters.max_grad_norm,
            step,
        }
    }

    /// At an epoch's end the whole validation file, a few times in between one batch of it.
    fn validate(&mut self, metrics: &mut StepMetrics, is_epoch_end: bool) -> Result<(), JobError> {
        let Some(validation) = self.validation else {
            return Ok(());
        };
        let every = self.plan.steps_per_epoch.div_ceil(EVALUATIONS_PER_EPOCH);
        if !is_epoch_end && !metrics.step.is_multiple_of(every) {
            return Ok(());
        }
        let all: Vec<&Sequence> = validation.sequences.iter().collect();
        let size = (self.plan.hyperparameters.batch_size as usize).min(all.len());
        let first = (metrics.step / every) as usize * size % all.len();
        let batch: Vec<&Sequence> = all.iter().cycle().skip(first).take(size).copied().collect();
        let (loss, accuracy) = self.evaluate(&batch)?;
        metrics.valid_loss = Some(loss);
        metrics.valid_mean_token_accuracy = Some(accuracy);
        if is_epoch_end {
            let (loss, accuracy) = self.evaluate(&all)?;
            metrics.full_valid_loss = Some(loss);
            metrics.full_valid_mean_token_accuracy = Some(accuracy);
        }
        Ok(())
    }

    /// Mean loss and accuracy over loss-bearing tokens.
    fn evaluate(&mut self, sequences: &[&Sequence]) -> Result<(f64, f64), JobError> {
        let mut sums = LossSums::default();
        for part in micro_batches(sequences) {
            add(&mut sums, self.engine.evaluate(part).map_err(engine_failed)?);
        }
        let tokens = sums.tokens.max(1) as f64;
        Ok((sums.loss / tokens, sums.correct as f64 / tokens))
    }

    fn checkpoint(&mut self) -> Result<PathBuf, JobError> {
        checkpoint::write(&self.spec.work_dir, self.engine, &self.adapter, &self.state)
            .map_err(checkpoint_failed)
    }

    /// Keeps the checkpoints of epochs, and of the others the newest two: one may be torn.
    fn remove_old_checkpoints(&self) -> Result<(), JobError> {
        let work_dir = &self.spec.work_dir;
        let steps = checkpoint::steps(work_dir).map_err(checkpoint_failed)?;
        let between = steps.into_iter().filter(|step| {
            !step.is_multiple_of(self.plan.steps_per_epoch) && *step <= self.state.step
        });
        for step in between.skip(2) {
            checkpoint::remove(work_dir, step).map_err(checkpoint_failed)?;
        }
        Ok(())
    }

    /// A loss above that of guessing every token alike, after the warm-up and the first steps, which
    /// an untrained model may well begin with.
    fn warn_of_divergence(&self, metrics: &StepMetrics, sink: &mut Sink<'_>) -> bool {
        let guessing = f64::from(u32::try_from(self.vocabulary()).unwrap_or(u32::MAX)).ln();
        let warm_up = self.plan.hyperparameters.warmup_ratio * self.plan.total_steps as f64;
        let is_early = (metrics.step as f64) <= warm_up.max(self.plan.total_steps as f64 / 2.0);
        if metrics.train_loss <= guessing || is_early {
            return false;
        }
        warn(
            sink,
            format!(
                "the loss of step {} is {:.2}, above the {guessing:.2} of guessing every token \
                 alike: training diverges; lower the learning rate",
                metrics.step, metrics.train_loss
            ),
        );
        true
    }

    /// An upper bound of the vocabulary, from the tokens that there are.
    fn vocabulary(&self) -> usize {
        let ids = self.training.sequences.iter().flat_map(|sequence| &sequence.input_ids);
        ids.max().map_or(2, |most| *most as usize + 1)
    }

    fn nan_loss(&self, step: u64, what: &str, batch: &[usize]) -> JobError {
        let lines: Vec<String> =
            batch.iter().map(|index| self.training.lines[*index].to_string()).collect();
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

    /// The CSV, and the last epoch's checkpoint as the result.
    fn finish(&mut self) -> Result<Progress, JobError> {
        let adapter_directory = self.checkpoint()?;
        let metrics_csv = self.spec.work_dir.join(metrics_csv::FILE_NAME);
        let text = metrics_csv::render(&self.state.metrics);
        atomic_file::write(&metrics_csv, text.as_bytes())
            .map_err(|error| internal(format!("{}: {error}", metrics_csv.display())))?;
        Ok(Progress::Finished {
            adapter_directory,
            metrics_csv,
            trained_steps: self.state.step,
            trained_tokens: self.state.trained_tokens,
        })
    }
}

/// Seconds that the steps of this process took, validation and checkpoints among them, for what the
/// rest should take.
struct Speed {
    began: Instant,
    steps: f64,
}

impl Speed {
    fn new() -> Self {
        Self { began: Instant::now(), steps: 0.0 }
    }

    fn step_ended(&mut self) {
        self.steps += 1.0;
    }

    fn seconds_per_step(&self) -> f64 {
        self.began.elapsed().as_secs_f64() / self.steps.max(1.0)
    }
}

fn loss_tokens(sequence: &Sequence) -> u64 {
    sequence.loss_mask.iter().skip(1).filter(|counts| **counts).count() as u64
}

fn add(sums: &mut LossSums, more: LossSums) {
    sums.loss += more.loss;
    sums.tokens += more.tokens;
    sums.correct += more.correct;
}

/// Cuts a batch into runs of at most [`TOKENS_AT_ONCE`] tokens, one sequence at least.
fn micro_batches<'a, 'b>(sequences: &'a [&'b Sequence]) -> Vec<&'a [&'b Sequence]> {
    let mut parts = Vec::new();
    let (mut first, mut tokens) = (0, 0);
    for (index, sequence) in sequences.iter().enumerate() {
        if index > first && tokens + sequence.input_ids.len() > TOKENS_AT_ONCE {
            parts.push(&sequences[first..index]);
            (first, tokens) = (index, 0);
        }
        tokens += sequence.input_ids.len();
    }
    parts.push(&sequences[first..]);
    parts
}

fn note(sink: &mut Sink<'_>, level: EventLevel, message: String, data: Option<serde_json::Value>) {
    sink(Progress::Note { level, message, data });
}

fn warn(sink: &mut Sink<'_>, message: String) {
    note(sink, EventLevel::Warn, message, None);
}

/// Says which examples are left out because they are too long.
fn say_too_long(file: &EncodedFile, which: &str, context: usize, sink: &mut Sink<'_>) {
    let Some(longest) = file.too_long.iter().map(|(_, tokens)| *tokens).max() else {
        return;
    };
    let lines: Vec<String> = file
        .too_long
        .iter()
        .take(MAX_LISTED_PROBLEMS)
        .map(|(line, tokens)| format!("{line} ({tokens} tokens)"))
        .collect();
    let more = match file.too_long.len() - lines.len() {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let message = format!(
        "{} of {} {which} examples are longer than {context} tokens and are left out whole, none is \
         cut: lines {}{more}; the longest has {longest} tokens",
        file.too_long.len(),
        file.too_long.len() + file.sequences.len(),
        lines.join(", ")
    );
    let data = serde_json::json!({"left_out": file.too_long.len(), "longest": longest});
    note(sink, EventLevel::Warn, message, Some(data));
}

/// Says what the data and the adapter come to.
fn say_statistics(training: &EncodedFile, engine: &dyn Engine, sink: &mut Sink<'_>) {
    let tokens: usize = training.sequences.iter().map(|sequence| sequence.input_ids.len()).sum();
    let learnt: u64 = training.sequences.iter().map(loss_tokens).sum();
    let (trainable, total) = engine.parameter_counts();
    let message = format!(
        "{} training examples with {tokens} tokens, {learnt} of them ({:.0} %) learnt; {trainable} of \
         {total} parameters are trained",
        training.sequences.len(),
        100.0 * learnt as f64 / tokens.max(1) as f64
    );
    let data = serde_json::json!({
        "examples": training.sequences.len(),
        "tokens": tokens,
        "loss_tokens": learnt,
        "trainable_parameters": trainable,
        "total_parameters": total,
    });
    note(sink, EventLevel::Info, message, Some(data));
}
