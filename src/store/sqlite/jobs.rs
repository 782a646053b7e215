//! SQL of jobs, as clients see them. What executors do with them is in `queue` and `progress`.

use std::collections::BTreeMap;

use sqlx::SqliteConnection;

use super::{cursor, events, files, permissions, rows, webhook_outbox};
use crate::domain::job::{EventLevel, Job, JobStatus, NewEvent};
use crate::domain::project::Project;
use crate::store::{
    CancelOutcome, MetadataFilter, Page, PageRequest, PauseOutcome, ResumeOutcome, StoreError,
};

/// Adds a row, which may be of a job that has failed already. Its files and the model that it continues
/// from must be there for its project: this runs in the transaction that would otherwise race with
/// their deletion.
pub(super) async fn insert(
    connection: &mut SqliteConnection,
    job: &Job,
    most_waiting: u32,
    now: i64,
) -> Result<(), StoreError> {
    require_room(connection, job, most_waiting).await?;
    files::require(connection, &job.project, &job.training_file, now).await?;
    if let Some(validation_file) = &job.validation_file {
        files::require(connection, &job.project, validation_file, now).await?;
    }
    if let Some(model) = &job.continue_from {
        permissions::require_usable(connection, &job.project, model).await?;
    }
    let total_steps =
        job.total_steps.map(|steps| rows::to_integer("jobs.total_steps", steps)).transpose()?;
    let chat_template = Some(&job.chat_template).filter(|settings| !settings.is_default());
    sqlx::query(
        "INSERT INTO jobs (id, created_at, finished_at, model, fine_tuned_model, status,
                           training_file, validation_file, result_files, trained_tokens,
                           hyperparameters, resolved, error, seed, suffix, metadata,
                           trained_steps, total_steps, estimated_finish, attempt, continue_from,
                           project, chat_template)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18,
                 $19, $20, $21, $22, $23)",
    )
    .bind(&job.id)
    .bind(job.created_at)
    .bind(job.finished_at)
    .bind(&job.model)
    .bind(&job.fine_tuned_model)
    .bind(job.status.as_str())
    .bind(&job.training_file)
    .bind(&job.validation_file)
    .bind(rows::to_json("jobs.result_files", &job.result_files)?)
    .bind(job.trained_tokens)
    .bind(rows::to_json("jobs.hyperparameters", &job.hyperparameters)?)
    .bind(rows::to_optional_json("jobs.resolved", job.resolved.as_ref())?)
    .bind(rows::to_optional_json("jobs.error", job.error.as_ref())?)
    .bind(i64::from(job.seed))
    .bind(&job.suffix)
    .bind(rows::to_optional_json("jobs.metadata", job.metadata.as_ref())?)
    .bind(rows::to_integer("jobs.trained_steps", job.trained_steps)?)
    .bind(total_steps)
    .bind(job.estimated_finish)
    .bind(i64::from(job.attempt))
    .bind(&job.continue_from)
    .bind(job.project.as_str())
    .bind(rows::to_optional_json("jobs.chat_template", chat_template)?)
    .execute(&mut *connection)
    .await?;
    webhook_outbox::job_ended(connection, &job.id, job.status, now).await
}

/// Fails with [`StoreError::QueueFull`] when `job` would wait and as many of its project do as may.
async fn require_room(
    connection: &mut SqliteConnection,
    job: &Job,
    most_waiting: u32,
) -> Result<(), StoreError> {
    if job.status.is_terminal() {
        return Ok(());
    }
    // A paused job may wait again at any moment: it keeps its place.
    let waiting: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM jobs WHERE status IN ($1, $2, $3) AND project = $4",
    )
    .bind(JobStatus::ValidatingFiles.as_str())
    .bind(JobStatus::Queued.as_str())
    .bind(JobStatus::Paused.as_str())
    .bind(job.project.as_str())
    .fetch_one(connection)
    .await?;
    if waiting >= i64::from(most_waiting) {
        return Err(StoreError::QueueFull(most_waiting));
    }
    Ok(())
}

/// The row of `id`.
pub(super) async fn by_id(
    connection: &mut SqliteConnection,
    id: &str,
) -> Result<Option<Job>, StoreError> {
    let row =
        sqlx::query("SELECT * FROM jobs WHERE id = $1").bind(id).fetch_optional(connection).await?;
    row.as_ref().map(rows::job).transpose()
}

/// One page, newest first, of a project's jobs that `metadata` picks.
pub(super) async fn list(
    connection: &mut SqliteConnection,
    project: &Project,
    metadata: &MetadataFilter,
    page: &PageRequest,
) -> Result<Page<Job>, StoreError> {
    let before = match &page.after {
        None => i64::MAX,
        Some(id) => {
            let query = "SELECT position FROM jobs WHERE id = $1 AND project = $2";
            cursor::position(connection, query, id, project.as_str()).await?
        }
    };
    let none = BTreeMap::new();
    let (pairs, is_absent) = match metadata {
        MetadataFilter::Pairs(pairs) => (pairs, false),
        MetadataFilter::Absent => (&none, true),
    };
    let found = sqlx::query(
        "SELECT * FROM jobs
         WHERE project = $5 AND position < $1
           AND ($4 = 0 OR metadata IS NULL)
           AND NOT EXISTS (
               SELECT 1 FROM json_each($2) AS wanted
               WHERE NOT EXISTS (
                   SELECT 1 FROM json_each(jobs.metadata) AS held
                   WHERE held.key = wanted.key AND held.value = wanted.value))
         ORDER BY position DESC LIMIT $3",
    )
    .bind(before)
    .bind(rows::to_json("jobs.metadata", pairs)?)
    .bind(i64::from(page.limit) + 1)
    .bind(is_absent)
    .bind(project.as_str())
    .fetch_all(connection)
    .await?;
    rows::page(&found, page.limit, rows::job)
}

/// Fails with [`StoreError::IllegalTransition`] unless this is a legal state transition.
pub(super) fn check_transition(id: &str, from: JobStatus, to: JobStatus) -> Result<(), StoreError> {
    if from.may_become(to) {
        return Ok(());
    }
    Err(StoreError::IllegalTransition { job_id: id.to_owned(), from, to })
}

/// The state transition to `cancelled` of a job that no executor works on, with a last event: a client that
/// follows the events sees every end.
pub(super) async fn cancel_now(
    connection: &mut SqliteConnection,
    id: &str,
    from: JobStatus,
    now: i64,
) -> Result<(), StoreError> {
    check_transition(id, from, JobStatus::Cancelled)?;
    sqlx::query(
        "UPDATE jobs
         SET status = $1, finished_at = $2, cancel_requested_at = coalesce(cancel_requested_at, $2),
             pause_requested_at = NULL, estimated_finish = NULL, lease_owner = NULL,
             lease_expires_at = NULL
         WHERE id = $3",
    )
    .bind(JobStatus::Cancelled.as_str())
    .bind(now)
    .bind(id)
    .execute(&mut *connection)
    .await?;
    let event = NewEvent::message(EventLevel::Info, "Fine-tuning job cancelled");
    events::append(connection, id, now, &[event]).await?;
    webhook_outbox::job_ended(connection, id, JobStatus::Cancelled, now).await
}

/// Cancels a job that waits; records the request on one that runs.
pub(super) async fn request_cancel(
    connection: &mut SqliteConnection,
    id: &str,
    now: i64,
) -> Result<Option<CancelOutcome>, StoreError> {
    let Some(job) = by_id(connection, id).await? else {
        return Ok(None);
    };
    let outcome: fn(Job) -> CancelOutcome = match job.status {
        JobStatus::Cancelled => return Ok(Some(CancelOutcome::AlreadyCancelled(job))),
        JobStatus::Succeeded | JobStatus::Failed => return Ok(Some(CancelOutcome::TooLate(job))),
        JobStatus::Running => {
            sqlx::query(
                "UPDATE jobs SET cancel_requested_at = coalesce(cancel_requested_at, $1)
                 WHERE id = $2",
            )
            .bind(now)
            .bind(id)
            .execute(&mut *connection)
            .await?;
            CancelOutcome::Requested
        }
        JobStatus::ValidatingFiles | JobStatus::Queued | JobStatus::Paused => {
            cancel_now(connection, id, job.status, now).await?;
            CancelOutcome::Cancelled
        }
    };
    let changed = by_id(connection, id).await?;
    Ok(changed.map(outcome))
}

/// Pauses a job that waits; records the request on one that runs.
pub(super) async fn request_pause(
    connection: &mut SqliteConnection,
    id: &str,
    now: i64,
    events: &[NewEvent],
) -> Result<Option<PauseOutcome>, StoreError> {
    let Some(job) = by_id(connection, id).await? else {
        return Ok(None);
    };
    let outcome: fn(Job) -> PauseOutcome = match job.status {
        JobStatus::Paused => return Ok(Some(PauseOutcome::AlreadyPaused(job))),
        _ if job.cancel_requested => return Ok(Some(PauseOutcome::Refused(job))),
        JobStatus::Running if job.pause_requested => {
            return Ok(Some(PauseOutcome::Requested(job)));
        }
        JobStatus::Running => {
            set_pause_requested(connection, id, Some(now)).await?;
            PauseOutcome::Requested
        }
        from if from.may_become(JobStatus::Paused) => {
            set_status(connection, id, JobStatus::Paused).await?;
            PauseOutcome::Paused
        }
        _ => return Ok(Some(PauseOutcome::Refused(job))),
    };
    events::append(connection, id, now, events).await?;
    if job.status != JobStatus::Running {
        // The executor writes it for a job that ran.
        let event = NewEvent::message(EventLevel::Info, "Fine-tuning job paused");
        events::append(connection, id, now, &[event]).await?;
    }
    let changed = by_id(connection, id).await?;
    Ok(changed.map(outcome))
}

/// Queues a paused job again; withdraws the request from one that still runs.
pub(super) async fn resume(
    connection: &mut SqliteConnection,
    id: &str,
    now: i64,
    events: &[NewEvent],
) -> Result<Option<ResumeOutcome>, StoreError> {
    let Some(job) = by_id(connection, id).await? else {
        return Ok(None);
    };
    match job.status {
        JobStatus::Paused => set_status(connection, id, JobStatus::Queued).await?,
        _ if job.cancel_requested => return Ok(Some(ResumeOutcome::Refused(job))),
        JobStatus::Running if job.pause_requested => {
            set_pause_requested(connection, id, None).await?
        }
        JobStatus::Running | JobStatus::Queued => return Ok(Some(ResumeOutcome::NotPaused(job))),
        _ => return Ok(Some(ResumeOutcome::Refused(job))),
    }
    events::append(connection, id, now, events).await?;
    let changed = by_id(connection, id).await?;
    Ok(changed.map(ResumeOutcome::Resumed))
}

/// Records or withdraws the request on a running job.
async fn set_pause_requested(
    connection: &mut SqliteConnection,
    id: &str,
    since: Option<i64>,
) -> Result<(), StoreError> {
    sqlx::query("UPDATE jobs SET pause_requested_at = $1 WHERE id = $2")
        .bind(since)
        .bind(id)
        .execute(connection)
        .await?;
    Ok(())
}

/// The state transition between waiting and paused of a job that no executor works on.
async fn set_status(
    connection: &mut SqliteConnection,
    id: &str,
    to: JobStatus,
) -> Result<(), StoreError> {
    // Whoever resumes a job wants it tried now.
    sqlx::query("UPDATE jobs SET status = $1, waits_until = NULL WHERE id = $2")
        .bind(to.as_str())
        .bind(id)
        .execute(connection)
        .await?;
    Ok(())
}
