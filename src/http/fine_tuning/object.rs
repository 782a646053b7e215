//! The job, event and checkpoint objects.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use crate::domain::job::{
    EventKind, EventLevel, Job, JobCheckpoint, JobError, JobEvent, JobStatus,
};
use crate::domain::model::ORGANISATION;

/// `object: "fine_tuning.job"`.
#[derive(Debug, Serialize, ToSchema)]
pub struct JobObject {
    id: String,
    /// `fine_tuning.job`.
    object: &'static str,
    /// Unix seconds.
    created_at: i64,
    /// Unix seconds; null until the job has ended.
    finished_at: Option<i64>,
    /// Base model.
    model: String,
    /// Null until it can be used.
    fine_tuned_model: Option<String>,
    organization_id: String,
    status: JobStatus,
    training_file: String,
    validation_file: Option<String>,
    /// Metrics CSV first, then the adapter or the whole model.
    result_files: Vec<String>,
    /// Null while running.
    trained_tokens: Option<i64>,
    /// `"auto"` until resolved, then numbers.
    #[schema(value_type = Object)]
    hyperparameters: Value,
    /// Null unless the job has failed.
    #[schema(value_type = Option<Object>)]
    error: Option<Value>,
    seed: u32,
    /// Unix seconds; only while running.
    estimated_finish: Option<i64>,
    /// Always empty.
    #[schema(value_type = Vec<Object>)]
    integrations: Vec<Value>,
    /// The method with its resolved hyperparameters.
    #[schema(value_type = Object)]
    method: Value,
    metadata: Option<BTreeMap<String, String>>,
    user_provided_suffix: Option<String>,
    usage_metrics: Option<i64>,
    shared_with_openai: bool,
    /// Optimiser steps done.
    trained_steps: u64,
    /// Optimiser steps in all; null until resolved.
    total_steps: Option<u64>,
    /// As the request had it; absent without.
    #[serde(skip_serializing_if = "Option::is_none")]
    chat_template: Option<String>,
    /// As the request had it; absent without.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    chat_template_kwargs: Option<Map<String, Value>>,
    /// As the request had it; absent without.
    #[serde(skip_serializing_if = "Option::is_none")]
    chat_template_date: Option<String>,
    /// As the request had it; absent where it is the default.
    #[serde(skip_serializing_if = "Option::is_none")]
    control_tokens: Option<&'static str>,
}

impl From<&Job> for JobObject {
    fn from(job: &Job) -> Self {
        let (hyperparameters, method) = hyperparameters(job);
        let error = job.error.as_ref().map(job_error);
        let template = &job.chat_template.defaults;
        Self {
            id: job.id.clone(),
            object: "fine_tuning.job",
            created_at: job.created_at,
            finished_at: job.finished_at,
            model: job.continue_from.as_ref().unwrap_or(&job.model).clone(),
            fine_tuned_model: job.fine_tuned_model.clone(),
            organization_id: format!("org-{ORGANISATION}"),
            status: job.status,
            training_file: job.training_file.clone(),
            validation_file: job.validation_file.clone(),
            result_files: job.result_files.clone(),
            trained_tokens: job.trained_tokens,
            hyperparameters,
            error,
            seed: job.seed,
            estimated_finish: job.estimated_finish,
            integrations: Vec::new(),
            method,
            metadata: job.metadata.clone(),
            user_provided_suffix: job.suffix.clone(),
            usage_metrics: None,
            shared_with_openai: false,
            trained_steps: job.trained_steps,
            total_steps: job.total_steps,
            chat_template: job.chat_template.chat_template.clone(),
            chat_template_kwargs: Some(&template.kwargs)
                .filter(|kwargs| !kwargs.is_empty())
                .cloned(),
            chat_template_date: template.date.map(|day| day.to_string()),
            control_tokens: job.chat_template.control_tokens.word(),
        }
    }
}

/// The job's `hyperparameters`, OpenAI's three, and its `method` with all: as resolved, or as asked for
/// until then.
pub(super) fn hyperparameters(job: &Job) -> (Value, Value) {
    // Values that serialise by construction; null would be the only other way to show them.
    let shown = match &job.resolved {
        Some(resolved) => serde_json::to_value(resolved),
        None => serde_json::to_value(&job.hyperparameters),
    };
    let mut all = shown.unwrap_or_default();
    if let Value::Object(all) = &mut all {
        // The method contains the hyperparameters.
        all.remove("method");
    }
    let openai: Value = ["n_epochs", "batch_size", "learning_rate_multiplier"]
        .into_iter()
        .map(|key| (key.to_owned(), all[key].clone()))
        .collect();
    let method = job.hyperparameters.method.as_str();
    (openai, json!({"type": method, method: {"hyperparameters": all}}))
}

/// Why a job failed, or would fail.
pub(super) fn job_error(error: &JobError) -> Value {
    json!({"code": error.code, "message": error.message, "param": error.param})
}

/// `object: "fine_tuning.job.event"`.
#[derive(Debug, Serialize, ToSchema)]
pub struct EventObject<'a> {
    id: &'a str,
    /// `fine_tuning.job.event`.
    object: &'static str,
    /// Unix seconds.
    created_at: i64,
    level: EventLevel,
    message: &'a str,
    #[serde(rename = "type")]
    kind: EventKind,
    /// Numbers.
    #[schema(value_type = Option<Object>)]
    data: Option<&'a Value>,
}

impl<'a> From<&'a JobEvent> for EventObject<'a> {
    fn from(stored: &'a JobEvent) -> Self {
        Self {
            id: &stored.id,
            object: "fine_tuning.job.event",
            created_at: stored.created_at,
            level: stored.event.level,
            message: &stored.event.message,
            kind: stored.event.kind,
            data: stored.event.data.as_ref(),
        }
    }
}

/// `object: "fine_tuning.job.checkpoint"`.
#[derive(Debug, Serialize, ToSchema)]
pub struct CheckpointObject {
    id: String,
    /// `fine_tuning.job.checkpoint`.
    object: &'static str,
    /// Unix seconds.
    created_at: i64,
    fine_tuning_job_id: String,
    /// Answers chat by this name.
    fine_tuned_model_checkpoint: String,
    step_number: u64,
    metrics: CheckpointMetrics,
    /// The adapter or the whole model as of this step.
    result_files: Vec<String>,
}

/// OpenAI's seven numbers, as far as they are known.
#[derive(Debug, Serialize, ToSchema)]
pub struct CheckpointMetrics {
    step: f64,
    train_loss: f64,
    train_mean_token_accuracy: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    valid_loss: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    valid_mean_token_accuracy: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    full_valid_loss: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    full_valid_mean_token_accuracy: Option<f64>,
}

impl From<JobCheckpoint> for CheckpointObject {
    fn from(checkpoint: JobCheckpoint) -> Self {
        let metrics = checkpoint.metrics;
        Self {
            id: checkpoint.id,
            object: "fine_tuning.job.checkpoint",
            created_at: checkpoint.created_at,
            fine_tuning_job_id: checkpoint.job_id,
            fine_tuned_model_checkpoint: checkpoint.model_name,
            step_number: checkpoint.step,
            metrics: CheckpointMetrics {
                step: metrics.step as f64,
                train_loss: metrics.train_loss,
                train_mean_token_accuracy: metrics.train_mean_token_accuracy,
                valid_loss: metrics.valid_loss,
                valid_mean_token_accuracy: metrics.valid_mean_token_accuracy,
                full_valid_loss: metrics.full_valid_loss,
                full_valid_mean_token_accuracy: metrics.full_valid_mean_token_accuracy,
            },
            result_files: checkpoint.result_files,
        }
    }
}
