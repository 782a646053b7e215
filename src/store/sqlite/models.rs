//! SQL of fine-tuned models and their checkpoints.

use sqlx::SqliteConnection;

use super::rows;
use crate::model::TunedModel;
use crate::store::StoreError;

/// Adds a row; its files are there already.
pub(super) async fn insert(
    connection: &mut SqliteConnection,
    model: &TunedModel,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO models (id, created_at, base_model, job_id, adapter_config_file,
                             adapter_weights_file, is_checkpoint)
         VALUES ($1, $2, $3, $4, $5, $6, $7)",
    )
    .bind(&model.id)
    .bind(model.created_at)
    .bind(&model.base_model)
    .bind(&model.job_id)
    .bind(&model.adapter_config_file)
    .bind(&model.adapter_weights_file)
    .bind(model.is_checkpoint)
    .execute(connection)
    .await?;
    Ok(())
}

/// The model or checkpoint called `id`.
pub(super) async fn by_id(
    connection: &mut SqliteConnection,
    id: &str,
) -> Result<Option<TunedModel>, StoreError> {
    let row = sqlx::query("SELECT * FROM models WHERE id = $1")
        .bind(id)
        .fetch_optional(connection)
        .await?;
    row.as_ref().map(rows::model).transpose()
}

/// Every model that is no checkpoint, newest first.
pub(super) async fn list(connection: &mut SqliteConnection) -> Result<Vec<TunedModel>, StoreError> {
    let found = sqlx::query("SELECT * FROM models WHERE is_checkpoint = 0 ORDER BY position DESC")
        .fetch_all(connection)
        .await?;
    found.iter().map(rows::model).collect()
}

/// Removes a model with the checkpoints of its job, or one checkpoint by its own name. The job and
/// the files stay; the files can be deleted from now on.
pub(super) async fn delete(
    connection: &mut SqliteConnection,
    id: &str,
) -> Result<bool, StoreError> {
    let Some(model) = by_id(connection, id).await? else {
        return Ok(false);
    };
    // Rows of `checkpoints` go with their model, by the foreign key.
    if model.is_checkpoint {
        sqlx::query("DELETE FROM models WHERE id = $1").bind(id).execute(connection).await?;
    } else {
        sqlx::query("DELETE FROM models WHERE job_id = $1")
            .bind(&model.job_id)
            .execute(connection)
            .await?;
    }
    Ok(true)
}
