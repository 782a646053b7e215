//! A fine-tuning job: its states, what was requested for, what it became.

mod hyperparameters;

use std::collections::BTreeMap;

use chrono::{DateTime, NaiveDate};
use serde::{Deserialize, Serialize};

pub use self::hyperparameters::{
    Auto, FineTuneMode, Hyperparameters, LoraLayers, Method, ResolvedHyperparameters, Schedule,
};
use crate::domain::chat_template::ChatTemplateSettings;
use crate::domain::error_code::ErrorCode;
use crate::domain::ids;
use crate::domain::model::tuned_model_name;
use crate::domain::project::Project;
use crate::util::excerpt::{cut, excerpt};

/// Where a job stands. The spelling on the wire is OpenAI's; `paused` is only ever seen after an
/// explicit pause.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum JobStatus {
    /// The files are being validated.
    ValidatingFiles,
    /// Waits in the queue.
    Queued,
    /// A trainer runs it.
    Running,
    /// Stopped by the user, to be resumed.
    Paused,
    /// Done: the model answers.
    Succeeded,
    /// Ended by an error.
    Failed,
    /// Ended by the user.
    Cancelled,
}

impl JobStatus {
    /// Every state.
    pub const ALL: &'static [JobStatus] = &[
        Self::ValidatingFiles,
        Self::Queued,
        Self::Running,
        Self::Paused,
        Self::Succeeded,
        Self::Failed,
        Self::Cancelled,
    ];

    /// The spelling on the wire and in the store.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ValidatingFiles => "validating_files",
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// The state that `text` spells, if any.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|status| status.as_str() == text)
    }

    /// Whether the job has ended for good.
    pub fn is_terminal(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }

    /// Whether this is one of the legal state transitions.
    pub fn may_become(self, next: JobStatus) -> bool {
        use JobStatus::*;
        matches!(
            (self, next),
            (ValidatingFiles, Queued | Failed | Cancelled)
                | (Queued, Running | Paused | Failed | Cancelled)
                | (Running, Queued | Paused | Succeeded | Failed | Cancelled)
                | (Paused, Queued | Cancelled)
        )
    }
}

/// One of the two data files of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DataFile {
    /// The training file.
    Training,
    /// The validation file.
    Validation,
}

impl DataFile {
    /// The request's field.
    pub fn param(self) -> &'static str {
        match self {
            Self::Training => "training_file",
            Self::Validation => "validation_file",
        }
    }

    /// The code of a job whose file is not what it should be.
    pub fn code(self) -> ErrorCode {
        match self {
            Self::Training => ErrorCode::InvalidTrainingFile,
            Self::Validation => ErrorCode::InvalidValidationFile,
        }
    }
}

/// Most bytes of the message of an event and of a job's error: the listed problems of a file, and some.
const MAX_MESSAGE_BYTES: usize = 20 * 1024;

/// Why a job failed; the shape of `error` on the job object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobError {
    /// From the table of public codes.
    pub code: ErrorCode,
    /// What happened, where, and what to do.
    pub message: String,
    /// The request field at fault, if one is.
    pub param: Option<String>,
}

impl JobError {
    /// The same, with a message of bounded length.
    pub fn shortened(self) -> Self {
        let param = self.param.map(|param| excerpt(&param).into_owned());
        Self { message: cut(self.message, MAX_MESSAGE_BYTES), param, ..self }
    }
}

/// What a client asks for when it creates a job.
#[derive(Debug, Clone, PartialEq)]
pub struct NewJob {
    /// Whose the job is.
    pub project: Project,
    /// Id of the base model.
    pub model: String,
    /// Name of the fine-tuned model or checkpoint that training continues from.
    pub continue_from: Option<String>,
    /// File id.
    pub training_file: String,
    /// File id.
    pub validation_file: Option<String>,
    /// How the job trains.
    pub hyperparameters: Hyperparameters,
    /// Seed of everything random, 0..=2147483647.
    pub seed: u32,
    /// The part of the model's name that the client chose.
    pub suffix: Option<String>,
    /// The client's own notes.
    pub metadata: Option<BTreeMap<String, String>>,
    /// How its conversations are rendered.
    pub chat_template: ChatTemplateSettings,
}

/// One fine-tuning job.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    /// `ftjob-…`.
    pub id: String,
    /// Whose it is; its files and the model that it continues from are of the same project.
    pub project: Project,
    /// Unix seconds.
    pub created_at: i64,
    /// Unix seconds; set when the job has ended.
    pub finished_at: Option<i64>,
    /// Id of the base model.
    pub model: String,
    /// Name of the fine-tuned model or checkpoint that training continues from; a fresh adapter
    /// without.
    pub continue_from: Option<String>,
    /// Set when, and only when, the job has succeeded.
    pub fine_tuned_model: Option<String>,
    /// Its state.
    pub status: JobStatus,
    /// File id.
    pub training_file: String,
    /// File id.
    pub validation_file: Option<String>,
    /// File ids of what the job produced.
    pub result_files: Vec<String>,
    /// Tokens that went through training, padding not counted, every epoch counted.
    pub trained_tokens: Option<i64>,
    /// What the client requested for.
    pub hyperparameters: Hyperparameters,
    /// Every hyperparameter resolved; `None` until a trainer has read the data.
    pub resolved: Option<ResolvedHyperparameters>,
    /// Set when the job has failed.
    pub error: Option<JobError>,
    /// Seed of everything random, 0..=2147483647.
    pub seed: u32,
    /// The part of the model's name that the client chose.
    pub suffix: Option<String>,
    /// The client's own notes.
    pub metadata: Option<BTreeMap<String, String>>,
    /// How its conversations are rendered, where the client said so.
    pub chat_template: ChatTemplateSettings,
    /// Optimiser steps done.
    pub trained_steps: u64,
    /// Optimiser steps in all; `None` until resolved.
    pub total_steps: Option<u64>,
    /// Unix seconds at which the job should be done; only while running.
    pub estimated_finish: Option<i64>,
    /// How often a trainer has been started for it.
    pub attempt: u32,
    /// Whether the user wants it to end.
    pub cancel_requested: bool,
    /// Whether the user wants it to pause, and it still runs.
    pub pause_requested: bool,
    /// What it has waited for since its last step, if it has.
    pub shortage: Option<JobShortage>,
}

/// The wait of a job for what others hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JobShortage {
    /// Unix seconds at which it first lacked something.
    pub since: i64,
    /// How often it has by now.
    pub count: u32,
}

impl Job {
    /// A job with an id of its own that waits since `now`.
    pub fn queued(requested: NewJob, now: i64) -> Self {
        let NewJob {
            project,
            model,
            continue_from,
            training_file,
            validation_file,
            hyperparameters,
            seed,
            suffix,
            metadata,
            chat_template,
        } = requested;
        Self {
            id: ids::new_job_id(),
            project,
            created_at: now,
            finished_at: None,
            model,
            continue_from,
            fine_tuned_model: None,
            status: JobStatus::Queued,
            training_file,
            validation_file,
            result_files: Vec::new(),
            trained_tokens: None,
            hyperparameters,
            resolved: None,
            error: None,
            seed,
            suffix,
            metadata,
            chat_template,
            trained_steps: 0,
            total_steps: None,
            estimated_finish: None,
            attempt: 0,
            cancel_requested: false,
            pause_requested: false,
            shortage: None,
        }
    }

    /// The same job, failed as soon as it was created.
    pub fn failed_at_creation(self, error: JobError) -> Self {
        let finished_at = Some(self.created_at);
        Self { status: JobStatus::Failed, finished_at, error: Some(error), ..self }
    }

    /// The name of the model that the job makes, the same for every attempt.
    pub fn model_name(&self) -> String {
        let id = ids::model_suffix(&self.id);
        tuned_model_name(&self.model, self.suffix.as_deref(), &id)
    }

    /// The day that `strftime_now` writes in its training, the same for every attempt: the client's, or the
    /// one on which the job was created, in UTC.
    pub fn training_date(&self) -> Option<NaiveDate> {
        let created = DateTime::from_timestamp(self.created_at, 0);
        self.chat_template.defaults.date.or(created.map(|time| time.date_naive()))
    }

    /// Whether the job makes a model of its own, and no adapter.
    pub fn makes_whole_model(&self) -> bool {
        self.hyperparameters.tuning.unwrap_or_default() != FineTuneMode::Lora
    }
}

/// How grave an event is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum EventLevel {
    /// As expected.
    Info,
    /// The user should read it.
    Warn,
    /// The job has failed.
    Error,
}

/// What kind of event it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum EventKind {
    /// A sentence for people.
    Message,
    /// Numbers of one step, in `data`.
    Metrics,
}

/// An event that is about to be stored; the store gives it an id and its place in the sequence.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NewEvent {
    /// How severe it is.
    pub level: EventLevel,
    /// What kind it is.
    pub kind: EventKind,
    /// For people.
    pub message: String,
    /// Numbers.
    pub data: Option<serde_json::Value>,
}

impl NewEvent {
    /// A sentence for people, cut where it is very long.
    pub fn message(level: EventLevel, message: impl Into<String>) -> Self {
        let message = cut(message.into(), MAX_MESSAGE_BYTES);
        Self { level, kind: EventKind::Message, message, data: None }
    }
}

/// A stored event of a job.
#[derive(Debug, Clone, PartialEq)]
pub struct JobEvent {
    /// `ftevent-…`.
    pub id: String,
    /// Place in the job's sequence, from 1, without gaps.
    pub sequence: i64,
    /// Unix seconds.
    pub created_at: i64,
    /// What it says.
    pub event: NewEvent,
}

/// Numbers of one optimiser step, as events, the CSV and checkpoints show them.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct StepMetrics {
    /// Optimiser step, from 1.
    pub step: u64,
    /// Mean loss over the supervised tokens of the step.
    pub train_loss: f64,
    /// Share of supervised tokens whose most likely prediction is right, 0..=1.
    pub train_mean_token_accuracy: f64,
    /// The same over one validation batch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub valid_loss: Option<f64>,
    /// See `valid_loss`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub valid_mean_token_accuracy: Option<f64>,
    /// The same over the whole validation file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub full_valid_loss: Option<f64>,
    /// See `full_valid_loss`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub full_valid_mean_token_accuracy: Option<f64>,
    /// Learning rate of the step.
    pub learning_rate: f64,
    /// Epochs done after the step, as a fraction.
    pub epoch: f64,
    /// Global gradient norm before clipping.
    pub grad_norm: f64,
    /// Mean margin between the rewards of the two answers; of preferences.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reward_margin: Option<f64>,
}

/// A stored checkpoint of a job.
#[derive(Debug, Clone, PartialEq)]
pub struct JobCheckpoint {
    /// `ftckpt_…`.
    pub id: String,
    /// Unix seconds.
    pub created_at: i64,
    /// The job.
    pub job_id: String,
    /// `<model>:ckpt-step-<n>`.
    pub model_name: String,
    /// Optimiser steps done.
    pub step: u64,
    /// Numbers of that step.
    pub metrics: StepMetrics,
    /// File ids of the adapter as of this step.
    pub result_files: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_state_has_no_transition() {
        for from in JobStatus::ALL.iter().filter(|status| status.is_terminal()) {
            for to in JobStatus::ALL {
                assert!(!from.may_become(*to), "{from:?} must not become {to:?}");
            }
        }
    }

    #[test]
    fn every_other_state_can_become_cancelled() {
        for from in JobStatus::ALL.iter().filter(|status| !status.is_terminal()) {
            assert!(from.may_become(JobStatus::Cancelled), "{from:?} cannot be cancelled");
        }
    }
}
