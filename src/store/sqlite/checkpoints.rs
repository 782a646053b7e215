//! SQL of checkpoints.

use sqlx::SqliteConnection;

use super::{cursor, rows};
use crate::domain::job::JobCheckpoint;
use crate::store::{Page, PageRequest, StoreError};

/// The job's checkpoint of this step.
pub(super) async fn by_step(
    connection: &mut SqliteConnection,
    job_id: &str,
    step: u64,
) -> Result<Option<JobCheckpoint>, StoreError> {
    let row = sqlx::query("SELECT * FROM checkpoints WHERE job_id = $1 AND step = $2")
        .bind(job_id)
        .bind(rows::to_integer("checkpoints.step", step)?)
        .fetch_optional(connection)
        .await?;
    row.as_ref().map(rows::checkpoint).transpose()
}

/// Adds a row; its model is there already.
pub(super) async fn insert(
    connection: &mut SqliteConnection,
    checkpoint: &JobCheckpoint,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO checkpoints (id, job_id, created_at, model_name, step, metrics, result_files)
         VALUES ($1, $2, $3, $4, $5, $6, $7)",
    )
    .bind(&checkpoint.id)
    .bind(&checkpoint.job_id)
    .bind(checkpoint.created_at)
    .bind(&checkpoint.model_name)
    .bind(rows::to_integer("checkpoints.step", checkpoint.step)?)
    .bind(rows::to_json("checkpoints.metrics", &checkpoint.metrics)?)
    .bind(rows::to_json("checkpoints.result_files", &checkpoint.result_files)?)
    .execute(connection)
    .await?;
    Ok(())
}

/// One page of a job's checkpoints, newest first.
pub(super) async fn list(
    connection: &mut SqliteConnection,
    job_id: &str,
    page: &PageRequest,
) -> Result<Page<JobCheckpoint>, StoreError> {
    let before = match &page.after {
        None => i64::MAX,
        Some(id) => {
            let query = "SELECT step FROM checkpoints WHERE id = $1 AND job_id = $2";
            cursor::position(connection, query, id, job_id).await?
        }
    };
    let found = sqlx::query(
        "SELECT * FROM checkpoints WHERE job_id = $1 AND step < $2
         ORDER BY step DESC LIMIT $3",
    )
    .bind(job_id)
    .bind(before)
    .bind(i64::from(page.limit) + 1)
    .fetch_all(connection)
    .await?;
    rows::page(&found, page.limit, rows::checkpoint)
}
