//! The dry run: what a run would be. Its data is read and counted, every value resolved, memory and time
//! estimated. The examples pass one after the other and no weight is loaded, so that a dry run takes
//! little memory beside a run that is under way.

mod flops;
mod time_estimate;
mod token_count;

use std::path::Path;

use self::flops::FlopEstimate;
pub use self::time_estimate::MachineSpeed;
use self::token_count::TokenCount;
use super::errors::{RunError, cannot_open, invalid_file, invalid_model, no_such_target};
use super::notices;
use super::plan::{self, DataSize};
use super::setup::{BaseSetup, trainable};
use crate::dataset::MIN_EXAMPLES;
use crate::domain::job::{DataFile, EventLevel, JobError, NewEvent};
use crate::train::data::tokenize::EncodeError;
use crate::train::decoder::check_tensors;
use crate::train::decoder::pack::longest_shared_prefix;
use crate::train::engine::{BackendKind, OpenBackend};
use crate::train::model::base_model::BaseModel;
pub use crate::train::protocol::DataCount;
use crate::train::protocol::{DryRun, MemoryNeed, PlannedRun, Progress, RunSpec};

/// Says what the run of `spec` would be.
pub fn dry_run(spec: &RunSpec, backend: BackendKind, speed: &MachineSpeed) -> DryRun {
    let mut report = DryRun::default();
    if let Err(error) = fill(&mut report, spec, backend, speed) {
        report.error = Some(error);
    }
    report
}

/// Fills in what the run would be, in the order in which [`super::setup`] prepares it; the error that
/// would end it there.
fn fill(
    report: &mut DryRun,
    spec: &RunSpec,
    backend: BackendKind,
    speed: &MachineSpeed,
) -> Result<(), JobError> {
    let setup = BaseSetup::open(spec, &mut |progress| report.notes.extend(note_of(progress)))?;
    let BaseSetup { base, model, context, .. } = &setup;
    // What trains does not depend on the data, though other values do.
    let any_data = DataSize { examples: MIN_EXAMPLES, validation_share: None };
    let values = plan::resolve(&setup.requested, &any_data, &setup.size).hyperparameters;
    let trainable = trainable(&values);
    let flops = FlopEstimate::new(model, &trainable);

    let mut files = DataFiles { base, context: *context, flops: flops.as_ref().ok(), error: None };
    let training = files.count(spec.training_file.as_path(), DataFile::Training, report);
    let mut validation = None;
    if let Some(path) = &spec.validation_file {
        validation = files.count(path, DataFile::Validation, report);
    }
    report.training = training.as_ref().map(|count| count.data.clone());
    report.validation = validation.as_ref().map(|count| count.data.clone());
    if let Some(error) = files.error {
        return Err(error);
    }
    let Some(training) = training else { return Ok(()) };
    let plan = setup.plan(training.totals(), validation.as_ref().map(TokenCount::totals))?;
    let values = &plan.hyperparameters;
    report.plan = Some(PlannedRun {
        hyperparameters: values.clone(),
        steps_per_epoch: plan.steps_per_epoch,
        total_steps: plan.total_steps,
        trained_tokens: training.data.tokens * u64::from(values.n_epochs),
        explanations: plan.explanations.clone(),
    });
    let mut note = |progress: Progress| report.notes.extend(note_of(progress));
    notices::data_warnings(&training.warnings, DataFile::Training, &mut note);
    if let Some(validation) = &validation {
        notices::data_warnings(&validation.warnings, DataFile::Validation, &mut note);
    }
    let backend = notices::backend(&trainable, backend, &mut note);
    notices::tied_head(&trainable, model.tied, &mut note);

    let counts = || [Some(&training), validation.as_ref()].into_iter().flatten();
    let longest = counts().map(|count| count.data.longest).max().unwrap_or(0) as usize;
    let shared = || counts().map(|count| longest_shared_prefix(count.all())).max().unwrap_or(0);
    let (open, full) = match OpenBackend::open(backend) {
        Ok(open) => (Some(open), None),
        Err(error) => (None, Some(cannot_open(error))),
    };
    let memory = setup.memory(&plan, backend, open.as_ref(), longest, shared)?;
    let refused = full.or_else(|| memory.check().err());
    report.memory = Some(MemoryNeed {
        total: memory.need.total(),
        weights: memory.need.weights,
        trained: memory.need.adapter,
        activations: memory.need.activations,
        logits: memory.need.logits,
        free: memory.free(),
        fits: refused.is_none(),
    });
    if let Some(RunError { error, shortage }) = refused {
        // Another run may hold now what this one would find free.
        let would = if shortage.is_some() { "wait" } else { "fail" };
        let message = format!("As things are now, the job would {would}: {}", error.message);
        report.notes.push(NewEvent::message(EventLevel::Warn, message));
    }

    let flops = flops.map_err(no_such_target)?;
    check_tensors(model, &base.weights.shapes().into_iter().collect()).map_err(invalid_model)?;
    let has_room = flops.has_room(&memory, backend, counts().map(|count| count.data.tokens).sum());
    let total = flops.of_run(&plan, &training, validation.as_ref(), has_room);
    report.seconds = speed.seconds(total, backend);
    Ok(())
}

/// What a run says to its user, as a note of the dry run.
fn note_of(progress: Progress) -> Option<NewEvent> {
    match progress {
        Progress::Note { level, message, data } => {
            Some(NewEvent { data, ..NewEvent::message(level, message) })
        }
        _ => None,
    }
}

/// The files of a run, as they are counted.
struct DataFiles<'a> {
    base: &'a BaseModel,
    context: usize,
    flops: Option<&'a FlopEstimate>,
    /// The first error of any of them.
    error: Option<JobError>,
}

impl DataFiles<'_> {
    /// Counts a file; `None` where it cannot be used. Its problems are noted in `report`.
    fn count(&mut self, path: &Path, which: DataFile, report: &mut DryRun) -> Option<TokenCount> {
        let error = match TokenCount::read(path, self.base, self.context, self.flops) {
            Ok(count) => return Some(count),
            Err(error) => error,
        };
        if let EncodeError::Diagnostics(problems) = &error {
            match which {
                DataFile::Training => report.training_problems = problems.clone(),
                DataFile::Validation => report.validation_problems = problems.clone(),
            }
        }
        self.error.get_or_insert(invalid_file(error, which).into());
        None
    }
}
