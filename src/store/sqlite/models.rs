//! SQL of fine-tuned models and their checkpoints.

use sqlx::{Row, SqliteConnection};

use super::rows;
use crate::domain::model::TunedModel;
use crate::domain::project::Project;
use crate::store::{DeleteModelOutcome, StoreError};

/// Adds a row; its files are there already.
pub(super) async fn insert(
    connection: &mut SqliteConnection,
    model: &TunedModel,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO models (id, created_at, base_model, job_id, config_file, weights_file,
                             is_checkpoint, is_whole, project)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
    )
    .bind(&model.id)
    .bind(model.created_at)
    .bind(&model.base_model)
    .bind(&model.job_id)
    .bind(&model.config_file)
    .bind(&model.weights_file)
    .bind(model.is_checkpoint)
    .bind(model.is_whole)
    .bind(model.project.as_str())
    .execute(&mut *connection)
    .await?;
    for (position, file) in (0i64..).zip(&model.other_files) {
        sqlx::query("INSERT INTO model_files (model_name, position, file_id) VALUES ($1, $2, $3)")
            .bind(&model.id)
            .bind(position)
            .bind(file)
            .execute(&mut *connection)
            .await?;
    }
    Ok(())
}

/// The model or checkpoint called `id`.
pub(super) async fn by_id(
    connection: &mut SqliteConnection,
    id: &str,
) -> Result<Option<TunedModel>, StoreError> {
    let row = sqlx::query("SELECT * FROM models WHERE id = $1")
        .bind(id)
        .fetch_optional(&mut *connection)
        .await?;
    let Some(mut model) = row.as_ref().map(rows::model).transpose()? else {
        return Ok(None);
    };
    add_other_files(connection, &mut model).await?;
    Ok(Some(model))
}

/// Reads what else there is: a whole model's tokenizer, an adapter's chat template.
async fn add_other_files(
    connection: &mut SqliteConnection,
    model: &mut TunedModel,
) -> Result<(), StoreError> {
    let found =
        sqlx::query("SELECT file_id FROM model_files WHERE model_name = $1 ORDER BY position")
            .bind(&model.id)
            .fetch_all(connection)
            .await?;
    for row in &found {
        model.other_files.push(row.try_get("file_id")?);
    }
    Ok(())
}

/// Every model of a project that is no checkpoint, newest first.
pub(super) async fn list(
    connection: &mut SqliteConnection,
    project: &Project,
) -> Result<Vec<TunedModel>, StoreError> {
    let found = sqlx::query(
        "SELECT * FROM models WHERE project = $1 AND is_checkpoint = 0 ORDER BY position DESC",
    )
    .bind(project.as_str())
    .fetch_all(&mut *connection)
    .await?;
    let mut models = Vec::with_capacity(found.len());
    for row in &found {
        let mut model = rows::model(row)?;
        add_other_files(connection, &mut model).await?;
        models.push(model);
    }
    Ok(models)
}

/// Removes a model with the checkpoints of its job, or one checkpoint by its own name, unless a job
/// that has not ended continues from one of them. The job and the files stay; the files can be
/// deleted from now on.
pub(super) async fn delete(
    connection: &mut SqliteConnection,
    id: &str,
) -> Result<DeleteModelOutcome, StoreError> {
    let Some(model) = by_id(connection, id).await? else {
        return Ok(DeleteModelOutcome::NotFound);
    };
    let all_of = (!model.is_checkpoint).then_some(&model.job_id);
    let job: Option<String> = sqlx::query_scalar(
        "SELECT id FROM jobs
         WHERE status NOT IN ('succeeded', 'failed', 'cancelled')
           AND continue_from IN (SELECT id FROM models WHERE id = $1 OR job_id = $2)
         ORDER BY position LIMIT 1",
    )
    .bind(id)
    .bind(all_of)
    .fetch_optional(&mut *connection)
    .await?;
    if let Some(job) = job {
        return Ok(DeleteModelOutcome::UsedByJob(job));
    }
    // Rows of `checkpoints` and `model_files` go with their model, by the foreign key.
    sqlx::query("DELETE FROM models WHERE id = $1 OR job_id = $2")
        .bind(id)
        .bind(all_of)
        .execute(connection)
        .await?;
    Ok(DeleteModelOutcome::Deleted)
}
