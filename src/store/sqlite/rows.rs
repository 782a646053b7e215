//! Rows to domain values and back: every column is read and written in this file's terms.

use serde::Serialize;
use serde::de::DeserializeOwned;
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use crate::domain::api_key::ApiKey;
use crate::domain::file::{FilePurpose, FileRecord};
use crate::domain::job::{
    EventKind, EventLevel, Job, JobCheckpoint, JobEvent, JobShortage, JobStatus, NewEvent,
};
use crate::domain::model::{CheckpointPermission, TunedModel};
use crate::domain::project::Project;
use crate::domain::upload::{Upload, UploadPart, UploadStatus};
use crate::domain::webhook::{
    DeliveryStatus, EventType, RetiringSecret, SigningSecret, WebhookDelivery, WebhookEndpoint,
    WebhookEvent,
};
use crate::store::{Page, StoreError};

/// A value as the JSON text that a column holds.
pub(super) fn to_json<T: Serialize>(column: &'static str, value: &T) -> Result<String, StoreError> {
    serde_json::to_string(value)
        .map_err(|error| StoreError::Corrupt { column, reason: error.to_string() })
}

/// The same for a column that may be empty.
pub(super) fn to_optional_json<T: Serialize>(
    column: &'static str,
    value: Option<&T>,
) -> Result<Option<String>, StoreError> {
    value.map(|value| to_json(column, value)).transpose()
}

fn from_json<T: DeserializeOwned>(column: &'static str, text: &str) -> Result<T, StoreError> {
    serde_json::from_str(text)
        .map_err(|error| StoreError::Corrupt { column, reason: error.to_string() })
}

fn from_optional_json<T: DeserializeOwned>(
    column: &'static str,
    text: Option<String>,
) -> Result<Option<T>, StoreError> {
    text.map(|text| from_json(column, &text)).transpose()
}

/// A count as the signed integer that SQL has.
pub(super) fn to_integer(column: &'static str, count: u64) -> Result<i64, StoreError> {
    i64::try_from(count).map_err(|error| StoreError::Corrupt { column, reason: error.to_string() })
}

fn to_count<T: TryFrom<i64>>(column: &'static str, integer: i64) -> Result<T, StoreError> {
    T::try_from(integer).map_err(|_out_of_range| StoreError::Corrupt {
        column,
        reason: format!("{integer} is out of range"),
    })
}

fn unknown_word(column: &'static str, word: &str) -> StoreError {
    StoreError::Corrupt { column, reason: format!("{word:?} is not known to this version") }
}

/// A row of `files`.
pub(super) fn file(row: &SqliteRow) -> Result<FileRecord, StoreError> {
    Ok(FileRecord {
        id: row.try_get("id")?,
        project: project(row)?,
        bytes: row.try_get("bytes")?,
        created_at: row.try_get("created_at")?,
        expires_at: row.try_get("expires_at")?,
        filename: row.try_get("filename")?,
        purpose: purpose("files.purpose", row)?,
        sha256: row.try_get("sha256")?,
        blob_key: row.try_get("blob_key")?,
        report: from_optional_json("files.verdict", row.try_get("verdict")?)?,
    })
}

/// Whose a row is.
pub(super) fn project(row: &SqliteRow) -> Result<Project, StoreError> {
    Ok(Project::stored(row.try_get("project")?))
}

fn purpose(column: &'static str, row: &SqliteRow) -> Result<FilePurpose, StoreError> {
    let purpose: String = row.try_get("purpose")?;
    FilePurpose::parse(&purpose).ok_or_else(|| unknown_word(column, &purpose))
}

/// A row of `uploads`.
pub(super) fn upload(row: &SqliteRow) -> Result<Upload, StoreError> {
    let status: String = row.try_get("status")?;
    Ok(Upload {
        id: row.try_get("id")?,
        project: project(row)?,
        created_at: row.try_get("created_at")?,
        expires_at: row.try_get("expires_at")?,
        bytes: row.try_get("bytes")?,
        filename: row.try_get("filename")?,
        purpose: purpose("uploads.purpose", row)?,
        file_lifetime: row.try_get("file_lifetime")?,
        status: UploadStatus::parse(&status)
            .ok_or_else(|| unknown_word("uploads.status", &status))?,
        part_ids: from_optional_json("uploads.part_ids", row.try_get("part_ids")?)?
            .unwrap_or_default(),
        file_id: row.try_get("file_id")?,
    })
}

/// A row of `upload_parts`.
pub(super) fn upload_part(row: &SqliteRow) -> Result<UploadPart, StoreError> {
    Ok(UploadPart {
        id: row.try_get("id")?,
        upload_id: row.try_get("upload_id")?,
        created_at: row.try_get("created_at")?,
        bytes: row.try_get("bytes")?,
        blob_key: row.try_get("blob_key")?,
    })
}

/// A row of `checkpoint_permissions`.
pub(super) fn permission(row: &SqliteRow) -> Result<CheckpointPermission, StoreError> {
    Ok(CheckpointPermission {
        id: row.try_get("id")?,
        checkpoint: row.try_get("checkpoint")?,
        project: Project::stored(row.try_get("project_id")?),
        created_at: row.try_get("created_at")?,
    })
}

/// The status of a row of `jobs`.
pub(super) fn job_status(row: &SqliteRow) -> Result<JobStatus, StoreError> {
    let status: String = row.try_get("status")?;
    JobStatus::parse(&status).ok_or_else(|| unknown_word("jobs.status", &status))
}

/// A row of `jobs`.
pub(super) fn job(row: &SqliteRow) -> Result<Job, StoreError> {
    let result_files: String = row.try_get("result_files")?;
    let hyperparameters: String = row.try_get("hyperparameters")?;
    let total_steps: Option<i64> = row.try_get("total_steps")?;
    let cancel_requested_at: Option<i64> = row.try_get("cancel_requested_at")?;
    let pause_requested_at: Option<i64> = row.try_get("pause_requested_at")?;
    let short_since: Option<i64> = row.try_get("short_since")?;
    let mut shortage = None;
    if let Some(since) = short_since {
        let count = to_count("jobs.short_count", row.try_get("short_count")?)?;
        shortage = Some(JobShortage { since, count });
    }
    Ok(Job {
        id: row.try_get("id")?,
        project: project(row)?,
        created_at: row.try_get("created_at")?,
        finished_at: row.try_get("finished_at")?,
        model: row.try_get("model")?,
        continue_from: row.try_get("continue_from")?,
        fine_tuned_model: row.try_get("fine_tuned_model")?,
        status: job_status(row)?,
        training_file: row.try_get("training_file")?,
        validation_file: row.try_get("validation_file")?,
        result_files: from_json("jobs.result_files", &result_files)?,
        trained_tokens: row.try_get("trained_tokens")?,
        hyperparameters: from_json("jobs.hyperparameters", &hyperparameters)?,
        resolved: from_optional_json("jobs.resolved", row.try_get("resolved")?)?,
        error: from_optional_json("jobs.error", row.try_get("error")?)?,
        seed: to_count("jobs.seed", row.try_get("seed")?)?,
        suffix: row.try_get("suffix")?,
        metadata: from_optional_json("jobs.metadata", row.try_get("metadata")?)?,
        chat_template: from_optional_json("jobs.chat_template", row.try_get("chat_template")?)?
            .unwrap_or_default(),
        trained_steps: to_count("jobs.trained_steps", row.try_get("trained_steps")?)?,
        total_steps: total_steps.map(|steps| to_count("jobs.total_steps", steps)).transpose()?,
        estimated_finish: row.try_get("estimated_finish")?,
        attempt: to_count("jobs.attempt", row.try_get("attempt")?)?,
        cancel_requested: cancel_requested_at.is_some(),
        pause_requested: pause_requested_at.is_some(),
        shortage,
    })
}

/// The spelling of an event's level in the store.
pub(super) fn level_word(level: EventLevel) -> &'static str {
    match level {
        EventLevel::Info => "info",
        EventLevel::Warn => "warn",
        EventLevel::Error => "error",
    }
}

/// The spelling of an event's kind in the store.
pub(super) fn kind_word(kind: EventKind) -> &'static str {
    match kind {
        EventKind::Message => "message",
        EventKind::Metrics => "metrics",
    }
}

/// A row of `events`.
pub(super) fn event(row: &SqliteRow) -> Result<JobEvent, StoreError> {
    let level: String = row.try_get("level")?;
    let kind: String = row.try_get("kind")?;
    Ok(JobEvent {
        id: row.try_get("id")?,
        sequence: row.try_get("sequence")?,
        created_at: row.try_get("created_at")?,
        event: NewEvent {
            level: match level.as_str() {
                "info" => EventLevel::Info,
                "warn" => EventLevel::Warn,
                "error" => EventLevel::Error,
                other => return Err(unknown_word("events.level", other)),
            },
            kind: match kind.as_str() {
                "message" => EventKind::Message,
                "metrics" => EventKind::Metrics,
                other => return Err(unknown_word("events.kind", other)),
            },
            message: row.try_get("message")?,
            data: from_optional_json("events.data", row.try_get("data")?)?,
        },
    })
}

/// A row of `checkpoints`.
pub(super) fn checkpoint(row: &SqliteRow) -> Result<JobCheckpoint, StoreError> {
    let metrics: String = row.try_get("metrics")?;
    let result_files: String = row.try_get("result_files")?;
    Ok(JobCheckpoint {
        id: row.try_get("id")?,
        created_at: row.try_get("created_at")?,
        job_id: row.try_get("job_id")?,
        model_name: row.try_get("model_name")?,
        step: to_count("checkpoints.step", row.try_get("step")?)?,
        metrics: from_json("checkpoints.metrics", &metrics)?,
        result_files: from_json("checkpoints.result_files", &result_files)?,
    })
}

/// A row of `models`; other files stand in rows of their own.
pub(super) fn model(row: &SqliteRow) -> Result<TunedModel, StoreError> {
    Ok(TunedModel {
        id: row.try_get("id")?,
        project: project(row)?,
        created_at: row.try_get("created_at")?,
        base_model: row.try_get("base_model")?,
        job_id: row.try_get("job_id")?,
        is_whole: row.try_get("is_whole")?,
        config_file: row.try_get("config_file")?,
        weights_file: row.try_get("weights_file")?,
        other_files: Vec::new(),
        is_checkpoint: row.try_get("is_checkpoint")?,
    })
}

/// A row of `webhook_endpoints`.
pub(super) fn webhook_endpoint(row: &SqliteRow) -> Result<WebhookEndpoint, StoreError> {
    let event_types: String = row.try_get("event_types")?;
    let previous: Option<String> = row.try_get("previous_secret")?;
    let until: Option<i64> = row.try_get("previous_secret_until")?;
    let previous_secret = previous
        .zip(until)
        .map(|(secret, until)| RetiringSecret { secret: SigningSecret::stored(secret), until });
    Ok(WebhookEndpoint {
        id: row.try_get("id")?,
        project: project(row)?,
        created_at: row.try_get("created_at")?,
        updated_at: row.try_get("updated_at")?,
        name: row.try_get("name")?,
        url: row.try_get("url")?,
        event_types: from_json("webhook_endpoints.event_types", &event_types)?,
        secret: SigningSecret::stored(row.try_get("secret")?),
        previous_secret,
    })
}

/// A row of `webhook_deliveries`.
pub(super) fn webhook_delivery(row: &SqliteRow) -> Result<WebhookDelivery, StoreError> {
    let event_type: String = row.try_get("event_type")?;
    let status: String = row.try_get("status")?;
    let attempts: String = row.try_get("attempts")?;
    Ok(WebhookDelivery {
        id: row.try_get("id")?,
        endpoint_id: row.try_get("endpoint_id")?,
        event: WebhookEvent {
            id: row.try_get("event_id")?,
            kind: EventType::parse(&event_type)
                .ok_or_else(|| unknown_word("webhook_deliveries.event_type", &event_type))?,
            subject: row.try_get("subject_id")?,
            created_at: row.try_get("created_at")?,
        },
        status: DeliveryStatus::parse(&status)
            .ok_or_else(|| unknown_word("webhook_deliveries.status", &status))?,
        attempts: from_json("webhook_deliveries.attempts", &attempts)?,
        next_attempt_at: row.try_get("next_attempt_at")?,
    })
}

/// A row of `api_keys`.
pub(super) fn api_key(row: &SqliteRow) -> Result<ApiKey, StoreError> {
    Ok(ApiKey {
        id: row.try_get("id")?,
        project: project(row)?,
        name: row.try_get("name")?,
        last_four: row.try_get("last_four")?,
        created_at: row.try_get("created_at")?,
        revoked_at: row.try_get("revoked_at")?,
    })
}

/// A page of at most `limit` items from one row more than that: the row too many says that there
/// is another page.
pub(super) fn page<T>(
    rows: &[SqliteRow],
    limit: u32,
    read: fn(&SqliteRow) -> Result<T, StoreError>,
) -> Result<Page<T>, StoreError> {
    let limit = limit as usize;
    let mut items = Vec::with_capacity(rows.len().min(limit));
    for row in rows.iter().take(limit) {
        items.push(read(row)?);
    }
    Ok(Page { items, has_more: rows.len() > limit })
}
