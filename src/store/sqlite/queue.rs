//! SQL of the queue: claims, leases, and the fencing token that keeps a lost claim from writing.

use sqlx::{Row, SqliteConnection};

use super::{events, jobs, rows};
use crate::domain::job::{Job, JobStatus, NewEvent};
use crate::domain::project::Project;
use crate::store::{Claim, HeartbeatReply, StoreError};

/// Whether giving a job back counts as one of its attempts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AttemptCount {
    /// It counts: the trainer died.
    Counted,
    /// It does not count: the server ended, or the user paused the job.
    NotCounted,
}

/// Fails with [`StoreError::LostClaim`] unless `claim` still holds its job.
pub(super) async fn check_claim(
    connection: &mut SqliteConnection,
    claim: &Claim,
) -> Result<(), StoreError> {
    sqlx::query("SELECT 1 FROM jobs WHERE id = $1 AND lease_epoch = $2 AND status = $3")
        .bind(&claim.job_id)
        .bind(claim.epoch)
        .bind(JobStatus::Running.as_str())
        .fetch_optional(connection)
        .await?
        .map(|_held| ())
        .ok_or_else(|| StoreError::LostClaim(claim.job_id.clone()))
}

/// Gives every running job back: no executor can hold them. One whose user has cancelled or
/// paused it is cancelled or paused instead. Its attempt does not count.
pub(super) async fn requeue_orphans(
    connection: &mut SqliteConnection,
    now: i64,
    events: &[NewEvent],
) -> Result<Vec<String>, StoreError> {
    let orphans =
        sqlx::query("SELECT id, lease_epoch FROM jobs WHERE status = $1 ORDER BY position")
            .bind(JobStatus::Running.as_str())
            .fetch_all(&mut *connection)
            .await?;
    let mut requeued = Vec::with_capacity(orphans.len());
    for orphan in &orphans {
        let claim = Claim { job_id: orphan.try_get("id")?, epoch: orphan.try_get("lease_epoch")? };
        let status = give_back(connection, &claim, AttemptCount::NotCounted, now).await?;
        if status == JobStatus::Queued {
            events::append(connection, &claim.job_id, now, events).await?;
            requeued.push(claim.job_id);
        }
    }
    Ok(requeued)
}

/// Keeps a queued job from being claimed for so many seconds, because others hold what it lacks.
pub(super) async fn postpone(
    connection: &mut SqliteConnection,
    job_id: &str,
    now: i64,
    seconds: i64,
) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE jobs SET short_since = coalesce(short_since, $1), short_count = short_count + 1,
                         waits_until = $2
         WHERE id = $3 AND status = $4",
    )
    .bind(now)
    .bind(now.saturating_add(seconds))
    .bind(job_id)
    .bind(JobStatus::Queued.as_str())
    .execute(&mut *connection)
    .await?;
    // It waits, and another one may begin.
    let row = sqlx::query("SELECT project FROM jobs WHERE id = $1")
        .bind(job_id)
        .fetch_one(&mut *connection)
        .await?;
    take_turn(connection, &rows::project(&row)?).await
}

/// Claims a job that waits and has not been postponed, or whose lease has run out: the oldest of the project
/// whose turn it is.
pub(super) async fn claim(
    connection: &mut SqliteConnection,
    owner: &str,
    now: i64,
    lease_seconds: i64,
) -> Result<Option<(Claim, Job)>, StoreError> {
    let candidate = sqlx::query(
        "SELECT id, status FROM jobs LEFT JOIN project_turns USING (project)
         WHERE (status = $1 AND coalesce(waits_until, 0) <= $3)
            OR (status = $2 AND lease_expires_at <= $3)
         ORDER BY CASE status WHEN $2 THEN 0 ELSE coalesce(turn, 0) END, position LIMIT 1",
    )
    .bind(JobStatus::Queued.as_str())
    .bind(JobStatus::Running.as_str())
    .bind(now)
    .fetch_optional(&mut *connection)
    .await?;
    let Some(candidate) = candidate else {
        return Ok(None);
    };
    let id: String = candidate.try_get("id")?;
    let status = rows::job_status(&candidate)?;
    // A running job with a lease that has run out stays running and only changes hands.
    if status != JobStatus::Running {
        jobs::check_transition(&id, status, JobStatus::Running)?;
    }
    let row = sqlx::query(
        "UPDATE jobs
         SET status = $1, lease_owner = $2, lease_epoch = lease_epoch + 1, lease_expires_at = $3,
             attempt = attempt + 1
         WHERE id = $4 RETURNING *",
    )
    .bind(JobStatus::Running.as_str())
    .bind(owner)
    .bind(now.saturating_add(lease_seconds))
    .bind(&id)
    .fetch_one(&mut *connection)
    .await?;
    let claim = Claim { job_id: id, epoch: row.try_get("lease_epoch")? };
    let job = rows::job(&row)?;
    take_turn(connection, &job.project).await?;
    Ok(Some((claim, job)))
}

/// Puts a project behind all others.
async fn take_turn(connection: &mut SqliteConnection, project: &Project) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO project_turns (project, turn)
         VALUES ($1, (SELECT coalesce(max(turn), 0) + 1 FROM project_turns))
         ON CONFLICT (project) DO UPDATE SET turn = excluded.turn",
    )
    .bind(project.as_str())
    .execute(connection)
    .await?;
    Ok(())
}

/// Puts the project of a job before all others: the job has begun, and is to end.
async fn keep_turn(connection: &mut SqliteConnection, job_id: &str) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE project_turns SET turn = 0
         WHERE project = (SELECT project FROM jobs WHERE id = $1)",
    )
    .bind(job_id)
    .execute(connection)
    .await?;
    Ok(())
}

/// Renews a claim until `until`.
pub(super) async fn heartbeat(
    connection: &mut SqliteConnection,
    claim: &Claim,
    until: i64,
) -> Result<HeartbeatReply, StoreError> {
    let row = sqlx::query(
        "UPDATE jobs SET lease_expires_at = $1
         WHERE id = $2 AND lease_epoch = $3 AND status = $4
         RETURNING cancel_requested_at, pause_requested_at",
    )
    .bind(until)
    .bind(&claim.job_id)
    .bind(claim.epoch)
    .bind(JobStatus::Running.as_str())
    .fetch_optional(connection)
    .await?
    .ok_or_else(|| StoreError::LostClaim(claim.job_id.clone()))?;
    let cancel_requested_at: Option<i64> = row.try_get("cancel_requested_at")?;
    let pause_requested_at: Option<i64> = row.try_get("pause_requested_at")?;
    Ok(HeartbeatReply {
        cancel_requested: cancel_requested_at.is_some(),
        pause_requested: pause_requested_at.is_some(),
    })
}

/// Gives a claimed job back to the queue, or cancels or pauses it when its user has requested that;
/// returns its state then.
pub(super) async fn give_back(
    connection: &mut SqliteConnection,
    claim: &Claim,
    attempt: AttemptCount,
    now: i64,
) -> Result<JobStatus, StoreError> {
    check_claim(connection, claim).await?;
    let (cancel_requested_at, pause_requested_at): (Option<i64>, Option<i64>) =
        sqlx::query_as("SELECT cancel_requested_at, pause_requested_at FROM jobs WHERE id = $1")
            .bind(&claim.job_id)
            .fetch_one(&mut *connection)
            .await?;
    if cancel_requested_at.is_some() {
        jobs::cancel_now(connection, &claim.job_id, JobStatus::Running, now).await?;
        return Ok(JobStatus::Cancelled);
    }
    let next = match pause_requested_at {
        Some(_requested) => JobStatus::Paused,
        None => JobStatus::Queued,
    };
    jobs::check_transition(&claim.job_id, JobStatus::Running, next)?;
    let uncounted = match attempt {
        AttemptCount::Counted => 0,
        AttemptCount::NotCounted => 1,
    };
    sqlx::query(
        "UPDATE jobs
         SET status = $1, attempt = attempt - $2, estimated_finish = NULL,
             pause_requested_at = NULL, lease_owner = NULL, lease_expires_at = NULL
         WHERE id = $3 AND lease_epoch = $4",
    )
    .bind(next.as_str())
    .bind(uncounted)
    .bind(&claim.job_id)
    .bind(claim.epoch)
    .execute(&mut *connection)
    .await?;
    if next == JobStatus::Queued {
        keep_turn(connection, &claim.job_id).await?;
    }
    Ok(next)
}
