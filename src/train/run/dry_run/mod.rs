//! What a run would be, without running it: its data read and counted, every value resolved, the memory
//! and the time that it would take. The examples pass by one after the other and no weight is loaded, so
//! that it takes little memory beside a run that is under way.

mod time_estimate;
mod token_count;

use std::path::Path;

use self::time_estimate::Effort;
pub use self::time_estimate::Pace;
use self::token_count::Count;
use super::errors::{
    engine_failed, invalid_file, invalid_model, no_such_target, no_validation_example, too_few,
};
use super::notices;
use super::plan::{self, DataSize};
use super::setup::{Opened, open, tuning};
use crate::dataset::MIN_EXAMPLES;
use crate::domain::job::{DataFile, EventLevel, JobError, NewEvent};
use crate::train::data::tokenize::EncodeError;
use crate::train::decoder::check_tensors;
use crate::train::decoder::pack::longest_shared;
use crate::train::engine::BackendKind;
use crate::train::engine::memory;
use crate::train::engine::memory::estimate::Workload;
use crate::train::model::base_model::BaseModel;
pub use crate::train::protocol::DataCount;
use crate::train::protocol::{DryRun, MemoryNeed, PlannedRun, Progress, RunSpec};

/// Looks at what the run of `spec` would be.
pub fn dry_run(spec: &RunSpec, backend: BackendKind, pace: &Pace) -> DryRun {
    let mut made = DryRun::default();
    if let Err(error) = look(spec, backend, pace, &mut made) {
        made.error = Some(error);
    }
    made
}

/// Writes into `made` what the run would be, in the order in which [`super::setup`] comes to it; the
/// error with which it would end there.
fn look(
    spec: &RunSpec,
    backend: BackendKind,
    pace: &Pace,
    made: &mut DryRun,
) -> Result<(), JobError> {
    let Opened { base, model, size, asked, start: _, context } = open(spec)?;
    // What trains does not depend on the data, though other values do.
    let any_data = DataSize { examples: MIN_EXAMPLES, validation_share: None };
    let tuning = tuning(&plan::resolve(&asked, &any_data, &size).hyperparameters);
    let effort = Effort::new(&model, &tuning);

    let mut files = Files { base: &base, context, effort: effort.as_ref().ok(), wrong: None };
    let training = files.count(spec.training_file.as_path(), DataFile::Training, made);
    let mut validation = None;
    if let Some(path) = &spec.validation_file {
        validation = files.count(path, DataFile::Validation, made);
    }
    made.training = training.as_ref().map(|count| count.data.clone());
    made.validation = validation.as_ref().map(|count| count.data.clone());
    if let Some(error) = files.wrong {
        return Err(error);
    }
    let Some(training) = training else { return Ok(()) };
    if validation.as_ref().is_some_and(|count| count.data.examples == 0) {
        return Err(no_validation_example(context));
    }
    if training.data.examples < MIN_EXAMPLES {
        return Err(too_few(training.data.examples, training.data.left_out, context));
    }

    let tokens = training.data.tokens;
    let share = validation.as_ref().map(|count| count.data.tokens as f64 / tokens as f64);
    let data = DataSize { examples: training.data.examples, validation_share: share };
    let plan = plan::resolve(&asked, &data, &size);
    let values = &plan.hyperparameters;
    made.plan = Some(PlannedRun {
        hyperparameters: values.clone(),
        steps_per_epoch: plan.steps_per_epoch,
        total_steps: plan.total_steps,
        trained_tokens: tokens * u64::from(values.n_epochs),
        explanations: plan.explanations.clone(),
    });
    let mut note = |progress: Progress| {
        if let Progress::Note { level, message, data } = progress {
            made.notes.push(NewEvent { data, ..NewEvent::message(level, message) });
        }
    };
    let backend = notices::backend(&tuning, backend, &mut note);
    notices::tied_head(&tuning, model.tied, &mut note);

    let counts = || [Some(&training), validation.as_ref()].into_iter().flatten();
    let workload = Workload {
        model: &model,
        tuning: &tuning,
        backend,
        longest: counts().map(|count| count.data.longest).max().unwrap_or(0) as usize,
        shared: match tuning.dropout() > 0.0 {
            true => 0,
            false => counts().map(|count| longest_shared(count.all())).max().unwrap_or(0),
        },
        batch_size: values.batch_size as usize,
    };
    let need = memory::estimate::estimate(&workload).map_err(engine_failed)?;
    let (place, free) = memory::free_for(backend);
    let refused = memory::check(&need, (place, free)).err();
    made.memory = Some(MemoryNeed {
        total: need.total(),
        weights: need.weights,
        trained: need.adapter,
        activations: need.activations,
        logits: need.logits,
        free,
        fits: refused.is_none(),
    });
    if let Some(error) = refused {
        // Another run may hold now what this one would find free.
        let message = format!("As things are now, the job would fail: {}", error.message);
        made.notes.push(NewEvent::message(EventLevel::Warn, message));
    }

    let effort = effort.map_err(no_such_target)?;
    check_tensors(&model, &base.weights.shapes().into_iter().collect()).map_err(invalid_model)?;
    let operations = effort.of_run(&plan, &training, validation.as_ref(), &need, (backend, free));
    made.seconds = pace.seconds(operations, backend);
    Ok(())
}

/// The files of a run, as they are counted.
struct Files<'a> {
    base: &'a BaseModel,
    context: usize,
    effort: Option<&'a Effort>,
    /// The first thing that is wrong with any of them.
    wrong: Option<JobError>,
}

impl Files<'_> {
    /// Counts a file; `None` where it cannot be used. Its problems are noted in `made`.
    fn count(&mut self, path: &Path, which: DataFile, made: &mut DryRun) -> Option<Count> {
        let error = match Count::read(path, self.base, self.context, self.effort) {
            Ok(count) => return Some(count),
            Err(error) => error,
        };
        if let EncodeError::Diagnostics(problems) = &error {
            match which {
                DataFile::Training => made.training_problems = problems.clone(),
                DataFile::Validation => made.validation_problems = problems.clone(),
            }
        }
        self.wrong.get_or_insert(invalid_file(error, which));
        None
    }
}
