//! SQL of a claimed job's progress and end. A claim that is lost matches no row
//! and writes nothing.

use sqlx::SqliteConnection;

use super::{jobs, queue, rows, webhook_outbox};
use crate::domain::job::{JobError, JobStatus, ResolvedHyperparameters};
use crate::store::{Claim, StoreError, Success};

/// Records the resolved hyperparameters.
pub(super) async fn resolved(
    connection: &mut SqliteConnection,
    claim: &Claim,
    resolved: &ResolvedHyperparameters,
    total_steps: u64,
) -> Result<(), StoreError> {
    let changed = sqlx::query(
        "UPDATE jobs SET resolved = $1, total_steps = $2
         WHERE id = $3 AND lease_epoch = $4 AND status = $5",
    )
    .bind(rows::to_json("jobs.resolved", resolved)?)
    .bind(rows::to_integer("jobs.total_steps", total_steps)?)
    .bind(&claim.job_id)
    .bind(claim.epoch)
    .bind(JobStatus::Running.as_str())
    .execute(connection)
    .await?;
    require_match(claim, changed.rows_affected())
}

/// Records how far training is.
pub(super) async fn step(
    connection: &mut SqliteConnection,
    claim: &Claim,
    step: u64,
    estimated_finish: Option<i64>,
) -> Result<(), StoreError> {
    let changed = sqlx::query(
        "UPDATE jobs SET trained_steps = $1, estimated_finish = $2, short_since = NULL,
                         short_count = 0, waits_until = NULL
         WHERE id = $3 AND lease_epoch = $4 AND status = $5",
    )
    .bind(rows::to_integer("jobs.trained_steps", step)?)
    .bind(estimated_finish)
    .bind(&claim.job_id)
    .bind(claim.epoch)
    .bind(JobStatus::Running.as_str())
    .execute(connection)
    .await?;
    require_match(claim, changed.rows_affected())
}

/// The state transition to `succeeded`, with all that the success names.
pub(super) async fn succeeded(
    connection: &mut SqliteConnection,
    claim: &Claim,
    success: &Success,
    now: i64,
) -> Result<(), StoreError> {
    jobs::check_transition(&claim.job_id, JobStatus::Running, JobStatus::Succeeded)?;
    let changed = sqlx::query(
        "UPDATE jobs
         SET status = $1, finished_at = $2, fine_tuned_model = $3, result_files = $4,
             trained_tokens = $5, trained_steps = $6, estimated_finish = NULL,
             pause_requested_at = NULL, lease_owner = NULL, lease_expires_at = NULL
         WHERE id = $7 AND lease_epoch = $8 AND status = $9",
    )
    .bind(JobStatus::Succeeded.as_str())
    .bind(now)
    .bind(&success.model.id)
    .bind(rows::to_json("jobs.result_files", &success.result_files)?)
    .bind(success.trained_tokens)
    .bind(rows::to_integer("jobs.trained_steps", success.trained_steps)?)
    .bind(&claim.job_id)
    .bind(claim.epoch)
    .bind(JobStatus::Running.as_str())
    .execute(&mut *connection)
    .await?;
    require_match(claim, changed.rows_affected())?;
    webhook_outbox::job_ended(connection, &claim.job_id, JobStatus::Succeeded, now).await
}

/// The state transition to `failed`.
pub(super) async fn failed(
    connection: &mut SqliteConnection,
    claim: &Claim,
    error: &JobError,
    now: i64,
) -> Result<(), StoreError> {
    jobs::check_transition(&claim.job_id, JobStatus::Running, JobStatus::Failed)?;
    let changed = sqlx::query(
        "UPDATE jobs
         SET status = $1, finished_at = $2, error = $3, estimated_finish = NULL,
             pause_requested_at = NULL, lease_owner = NULL, lease_expires_at = NULL
         WHERE id = $4 AND lease_epoch = $5 AND status = $6",
    )
    .bind(JobStatus::Failed.as_str())
    .bind(now)
    .bind(rows::to_json("jobs.error", error)?)
    .bind(&claim.job_id)
    .bind(claim.epoch)
    .bind(JobStatus::Running.as_str())
    .execute(&mut *connection)
    .await?;
    require_match(claim, changed.rows_affected())?;
    webhook_outbox::job_ended(connection, &claim.job_id, JobStatus::Failed, now).await
}

/// The state transition to `cancelled`.
pub(super) async fn cancelled(
    connection: &mut SqliteConnection,
    claim: &Claim,
    now: i64,
) -> Result<(), StoreError> {
    queue::check_claim(connection, claim).await?;
    jobs::cancel_now(connection, &claim.job_id, JobStatus::Running, now).await
}

/// A statement that names a claim and matches no row has met a claim that is lost.
fn require_match(claim: &Claim, rows_affected: u64) -> Result<(), StoreError> {
    if rows_affected == 0 {
        return Err(StoreError::LostClaim(claim.job_id.clone()));
    }
    Ok(())
}
