//! SQL of idempotency keys.

use sqlx::{Row, SqliteConnection};

use super::jobs;
use crate::store::{IdempotencyKey, ReplayedRequest, StoreError};

/// What an earlier request with this key was.
pub(super) async fn find(
    connection: &mut SqliteConnection,
    request: &IdempotencyKey,
) -> Result<Option<ReplayedRequest>, StoreError> {
    let row =
        sqlx::query("SELECT digest, job_id FROM request_keys WHERE key = $1 AND project = $2")
            .bind(&request.key)
            .bind(request.project.as_str())
            .fetch_optional(&mut *connection)
            .await?;
    let Some(row) = row else {
        return Ok(None);
    };
    let digest: String = row.try_get("digest")?;
    if digest != request.digest {
        return Ok(Some(ReplayedRequest::Other));
    }
    let job_id: String = row.try_get("job_id")?;
    let job = jobs::by_id(connection, &job_id).await?;
    Ok(job.map(|job| ReplayedRequest::Same(Box::new(job))))
}

/// Records which job the request made.
pub(super) async fn insert(
    connection: &mut SqliteConnection,
    request: &IdempotencyKey,
    job_id: &str,
    now: i64,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO request_keys (key, digest, job_id, created_at, project)
         VALUES ($1, $2, $3, $4, $5)",
    )
    .bind(&request.key)
    .bind(&request.digest)
    .bind(job_id)
    .bind(now)
    .bind(request.project.as_str())
    .execute(connection)
    .await?;
    Ok(())
}
