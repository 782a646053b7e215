//! The dry run of a job: what the job would be, without creating it.

use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::object::{hyperparameters, job_error};
use super::validated_job::{JobFiles, ValidatedJob};
use crate::dataset::Diagnostics;
use crate::domain::error_code::ErrorCode;
use crate::domain::file::FileRecord;
use crate::domain::job::{DataFile, EventLevel, JobError, NewEvent};
use crate::executor::{DataCount, DryRun, DryRunError, MemoryNeed};
use crate::http::error::{ApiError, ApiResult};
use crate::http::state::AppState;

/// `object: "fine_tuning.job.dry_run"`. What is not known is null: a file with problems is not counted.
#[derive(Debug, Serialize, ToSchema)]
pub struct DryRunObject {
    /// `fine_tuning.job.dry_run`.
    object: &'static str,
    /// Whether the job would train.
    is_valid: bool,
    /// Base model, or the fine-tuned model that the job would go on from.
    model: String,
    training_file: String,
    validation_file: Option<String>,
    /// The error with which the job would fail.
    #[schema(value_type = Option<Object>)]
    error: Option<Value>,
    /// How many problems both files have.
    problem_count: u64,
    /// The first of them: fifty of each file.
    problems: Vec<ProblemObject>,
    /// Warnings and notices that the job's events would hold before it begins.
    notes: Vec<NoteObject>,
    training: Option<DataObject>,
    validation: Option<DataObject>,
    /// Supervised tokens over all tokens of the training file, 0 to 1.
    loss_token_share: Option<f64>,
    /// Tokens of all epochs, unless training ends early.
    trained_tokens: Option<u64>,
    /// Optimiser steps of one epoch.
    steps_per_epoch: Option<u64>,
    /// Optimiser steps in all, unless training ends early.
    total_steps: Option<u64>,
    /// As the job would show them.
    #[schema(value_type = Object)]
    hyperparameters: Value,
    /// As the job would show it: every value resolved.
    #[schema(value_type = Object)]
    method: Value,
    /// How each value that was left open was resolved.
    explanations: Vec<String>,
    memory: Option<MemoryObject>,
    /// Estimated seconds of training, from the FLOPs of the run and the measured speed of the CPU: other work
    /// on it makes training longer. Null on a GPU and for a run that trains the model's own weights, whose
    /// speed is not known beforehand.
    estimated_seconds: Option<f64>,
}

/// One problem of a file.
#[derive(Debug, Serialize, ToSchema)]
pub struct ProblemObject {
    /// `training_file` or `validation_file`.
    file: &'static str,
    /// Line of the file, from 1.
    line: u64,
    /// Index of the message, from 0.
    message_index: Option<usize>,
    /// Path of the key, such as `messages[2].content`.
    key: Option<String>,
    /// What is wrong and what to do.
    message: String,
}

/// A notice of the job.
#[derive(Debug, Serialize, ToSchema)]
pub struct NoteObject {
    level: EventLevel,
    message: String,
    /// Numbers.
    #[schema(value_type = Option<Object>)]
    data: Option<Value>,
}

/// Token counts of a file.
#[derive(Debug, Serialize, ToSchema)]
pub struct DataObject {
    /// Examples that fit into the context.
    examples: u64,
    /// Their tokens; both answers of a preference count.
    tokens: u64,
    /// Of these, supervised tokens.
    loss_tokens: u64,
    /// Tokens of the longest example.
    longest: u64,
    /// Examples that are longer than `context_length` and would be left out.
    left_out: u64,
    /// The first of these.
    left_out_lines: Vec<LeftOutObject>,
}

/// An example that would be left out.
#[derive(Debug, Serialize, ToSchema)]
pub struct LeftOutObject {
    /// Line of the file, from 1.
    line: u64,
    /// Its tokens.
    tokens: u64,
}

/// Peak memory of the job, in bytes.
#[derive(Debug, Serialize, ToSchema)]
pub struct MemoryObject {
    /// All of it.
    needed_bytes: u64,
    /// Of this, frozen weights.
    weights_bytes: u64,
    /// Trainable parameters, their gradients and moments.
    trained_bytes: u64,
    /// Saved activations and buffers of the blocks.
    activations_bytes: u64,
    /// The head's logits.
    logits_bytes: u64,
    /// Free memory, beside a running job; null where the system does not report it.
    free_bytes: Option<u64>,
    /// Whether the job would fit into the free memory.
    fits: bool,
}

impl From<DataCount> for DataObject {
    fn from(count: DataCount) -> Self {
        let left_out = count.left_out_lines.into_iter();
        Self {
            examples: count.examples,
            tokens: count.tokens,
            loss_tokens: count.loss_tokens,
            longest: count.longest,
            left_out: count.left_out,
            left_out_lines: left_out.map(|(line, tokens)| LeftOutObject { line, tokens }).collect(),
        }
    }
}

impl From<MemoryNeed> for MemoryObject {
    fn from(need: MemoryNeed) -> Self {
        Self {
            needed_bytes: need.total,
            weights_bytes: need.weights,
            trained_bytes: need.trained,
            activations_bytes: need.activations,
            logits_bytes: need.logits,
            free_bytes: need.free,
            fits: need.fits,
        }
    }
}

/// Runs the dry run of a validated job.
pub(super) async fn dry_run(state: &AppState, validated: ValidatedJob) -> ApiResult<DryRunObject> {
    let ValidatedJob { mut job, events, files: job_files } = validated;
    let result = match job.error.clone() {
        // The job would fail at once, so its files are not examined further.
        Some(error) => from_upload_reports(error, &job_files),
        None => {
            let outcome = state.shutdown.run_until_cancelled(state.dry_runs.dry_run(job.clone()));
            match outcome.await {
                Some(Ok(result)) => result,
                Some(Err(DryRunError::Refused(error))) => {
                    DryRun { error: Some(error), ..DryRun::default() }
                }
                Some(Err(error)) => return Err(no_answer(error)),
                None => {
                    let message = "the server is shutting down: ask again when it is back";
                    return Err(ApiError::new(ErrorCode::ModelLoading, message));
                }
            }
        }
    };
    job.resolved = result.plan.as_ref().map(|plan| plan.hyperparameters.clone());
    let (hyperparameters, method) = hyperparameters(&job);
    let plan = result.plan;
    let files = [
        (DataFile::Training, &result.training_problems),
        (DataFile::Validation, &result.validation_problems),
    ];
    let warnings = events.into_iter().filter(|event| event.level == EventLevel::Warn);
    let share = |count: &DataCount| count.loss_tokens as f64 / count.tokens.max(1) as f64;
    Ok(DryRunObject {
        object: "fine_tuning.job.dry_run",
        is_valid: result.error.is_none(),
        model: job.continue_from.unwrap_or(job.model),
        training_file: job.training_file,
        validation_file: job.validation_file,
        error: result.error.as_ref().map(job_error),
        problem_count: files.iter().map(|(_, problems)| problems.total).sum(),
        problems: files.iter().flat_map(|(which, problems)| listed(*which, problems)).collect(),
        notes: warnings.chain(result.notes).map(NoteObject::from).collect(),
        loss_token_share: result.training.as_ref().map(share),
        training: result.training.map(DataObject::from),
        validation: result.validation.map(DataObject::from),
        trained_tokens: plan.as_ref().map(|plan| plan.trained_tokens),
        steps_per_epoch: plan.as_ref().map(|plan| plan.steps_per_epoch),
        total_steps: plan.as_ref().map(|plan| plan.total_steps),
        hyperparameters,
        method,
        explanations: plan.map(|plan| plan.explanations).unwrap_or_default(),
        memory: result.memory.map(MemoryObject::from),
        estimated_seconds: result.seconds,
    })
}

impl From<NewEvent> for NoteObject {
    fn from(event: NewEvent) -> Self {
        Self { level: event.level, message: event.message, data: event.data }
    }
}

fn listed(which: DataFile, problems: &Diagnostics) -> impl Iterator<Item = ProblemObject> {
    problems.listed.iter().map(move |problem| ProblemObject {
        file: which.param(),
        line: problem.line,
        message_index: problem.message_index,
        key: problem.key.clone(),
        message: problem.message.clone(),
    })
}

/// A dry run over files whose upload reports have problems.
fn from_upload_reports(error: JobError, files: &JobFiles) -> DryRun {
    let problems = |file: &FileRecord| {
        file.report.as_ref().map(|report| report.problems.clone()).unwrap_or_default()
    };
    DryRun {
        error: Some(error),
        training_problems: problems(&files.training),
        validation_problems: files.validation.as_ref().map(problems).unwrap_or_default(),
        ..DryRun::default()
    }
}

fn no_answer(error: DryRunError) -> ApiError {
    let message = error.to_string();
    match error {
        DryRunError::Busy => ApiError::new(ErrorCode::RateLimitExceeded, message),
        DryRunError::TooLong => {
            ApiError::new(ErrorCode::FileTooLarge, message).with_param("training_file")
        }
        DryRunError::Refused(_) | DryRunError::Broken(_) => ApiError::internal(message),
    }
}
