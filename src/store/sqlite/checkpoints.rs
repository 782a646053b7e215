//! SQL of checkpoints.

use sqlx::SqliteConnection;

use super::{cursor, files, models, rows};
use crate::domain::job::JobCheckpoint;
use crate::store::{DeleteFileOutcome, DeleteModelOutcome, Page, PageRequest, StoreError};

/// Whether there is a checkpoint of this step of the job, or has been one that was removed.
pub(super) async fn has_been(
    connection: &mut SqliteConnection,
    job_id: &str,
    step: u64,
) -> Result<bool, StoreError> {
    let found = sqlx::query_scalar(
        "SELECT EXISTS (SELECT 1 FROM checkpoints WHERE job_id = $1 AND step = $2)
             OR EXISTS (SELECT 1 FROM removed_checkpoints WHERE job_id = $1 AND step = $2)",
    );
    let step = rows::to_integer("checkpoints.step", step)?;
    Ok(found.bind(job_id).bind(step).fetch_one(connection).await?)
}

/// The job's checkpoints up to this step.
pub(super) async fn up_to(
    connection: &mut SqliteConnection,
    job_id: &str,
    step: u64,
) -> Result<Vec<JobCheckpoint>, StoreError> {
    let found = sqlx::query("SELECT * FROM checkpoints WHERE job_id = $1 AND step <= $2")
        .bind(job_id)
        .bind(rows::to_integer("checkpoints.step", step)?)
        .fetch_all(connection)
        .await?;
    found.iter().map(rows::checkpoint).collect()
}

/// Removes a checkpoint with its model and its files, unless a job continues from it; the keys of the blobs.
pub(super) async fn remove(
    connection: &mut SqliteConnection,
    checkpoint: &JobCheckpoint,
    now: i64,
) -> Result<Vec<String>, StoreError> {
    let mut blob_keys = Vec::new();
    match models::delete(connection, &checkpoint.model_name).await? {
        DeleteModelOutcome::Deleted => {}
        DeleteModelOutcome::UsedByJob(_) | DeleteModelOutcome::NotFound => return Ok(blob_keys),
    }
    for id in &checkpoint.result_files {
        let outcome = files::delete(connection, id, now).await?;
        if let DeleteFileOutcome::Deleted(file) = outcome {
            blob_keys.push(file.blob_key);
        }
    }
    Ok(blob_keys)
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
            let query = "SELECT step FROM checkpoints WHERE id = $1 AND job_id = $2
                 UNION ALL SELECT position FROM deleted_items
                 WHERE list = 'checkpoints' AND id = $1 AND owner = $2";
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
