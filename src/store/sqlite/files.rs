//! SQL of files.

use sqlx::SqliteConnection;

use super::{cursor, rows};
use crate::domain::file::{FilePurpose, FileRecord};
use crate::domain::project::Project;
use crate::store::{DeleteFileOutcome, Order, Page, PageRequest, StoreError};

/// Which files a list holds.
#[derive(Clone, Copy)]
pub(super) struct FileFilter<'a> {
    /// Whose files.
    pub(super) project: &'a Project,
    /// Those of one purpose, or all.
    pub(super) purpose: Option<FilePurpose>,
    /// Those that have not expired at this time.
    pub(super) now: i64,
}

/// SQL for a file that is there at the time `$1`: it has not expired, or a job that has not ended uses
/// it.
macro_rules! is_there {
    () => {
        "(expires_at IS NULL OR expires_at > $1 OR EXISTS (
             SELECT 1 FROM jobs
             WHERE status NOT IN ('succeeded', 'failed', 'cancelled')
               AND (training_file = files.id OR validation_file = files.id)))"
    };
}

/// SQL for the columns of a file in a list: without the report of its upload, of which a page would hold
/// thousands.
macro_rules! listed {
    () => {
        "id, bytes, created_at, expires_at, filename, purpose, sha256, blob_key, project,
         NULL AS verdict"
    };
}

/// Adds a row.
pub(super) async fn insert(
    connection: &mut SqliteConnection,
    file: &FileRecord,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO files (id, bytes, created_at, expires_at, filename, purpose, sha256,
                            blob_key, verdict, project)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
    )
    .bind(&file.id)
    .bind(file.bytes)
    .bind(file.created_at)
    .bind(file.expires_at)
    .bind(&file.filename)
    .bind(file.purpose.as_str())
    .bind(&file.sha256)
    .bind(&file.blob_key)
    .bind(rows::to_optional_json("files.verdict", file.report.as_ref())?)
    .bind(file.project.as_str())
    .execute(connection)
    .await?;
    Ok(())
}

/// The row of `id`.
pub(super) async fn by_id(
    connection: &mut SqliteConnection,
    id: &str,
    now: i64,
) -> Result<Option<FileRecord>, StoreError> {
    let row = sqlx::query(concat!("SELECT * FROM files WHERE id = $2 AND ", is_there!()))
        .bind(now)
        .bind(id)
        .fetch_optional(connection)
        .await?;
    row.as_ref().map(rows::file).transpose()
}

/// One page of a project's files, in order of creation.
pub(super) async fn list(
    connection: &mut SqliteConnection,
    filter: &FileFilter<'_>,
    order: Order,
    page: &PageRequest,
) -> Result<Page<FileRecord>, StoreError> {
    let FileFilter { project, purpose, now } = *filter;
    let (after, query) = match order {
        Order::Ascending => (
            0,
            concat!(
                "SELECT ",
                listed!(),
                " FROM files WHERE project = $5 AND position > $2
                   AND ($3 IS NULL OR purpose = $3) AND ",
                is_there!(),
                " ORDER BY position ASC LIMIT $4"
            ),
        ),
        Order::Descending => (
            i64::MAX,
            concat!(
                "SELECT ",
                listed!(),
                " FROM files WHERE project = $5 AND position < $2
                   AND ($3 IS NULL OR purpose = $3) AND ",
                is_there!(),
                " ORDER BY position DESC LIMIT $4"
            ),
        ),
    };
    let after = match &page.after {
        None => after,
        Some(id) => {
            let query = "SELECT position FROM files WHERE id = $1 AND project = $2
                 UNION ALL SELECT position FROM deleted_items
                 WHERE list = 'files' AND id = $1 AND owner = $2";
            cursor::position(connection, query, id, project.as_str()).await?
        }
    };
    let found = sqlx::query(query)
        .bind(now)
        .bind(after)
        .bind(purpose.map(FilePurpose::as_str))
        .bind(i64::from(page.limit) + 1)
        .bind(project.as_str())
        .fetch_all(connection)
        .await?;
    rows::page(&found, page.limit, rows::file)
}

/// Removes the row of `id`, unless a job that has not ended or a model needs it.
pub(super) async fn delete(
    connection: &mut SqliteConnection,
    id: &str,
    now: i64,
) -> Result<DeleteFileOutcome, StoreError> {
    let Some(file) = by_id(connection, id, now).await? else {
        return Ok(DeleteFileOutcome::NotFound);
    };
    let job: Option<String> = sqlx::query_scalar(
        "SELECT id FROM jobs
         WHERE status NOT IN ('succeeded', 'failed', 'cancelled')
           AND (training_file = $1 OR validation_file = $1)
         ORDER BY position LIMIT 1",
    )
    .bind(id)
    .fetch_optional(&mut *connection)
    .await?;
    if let Some(job) = job {
        return Ok(DeleteFileOutcome::UsedByJob(job));
    }
    let model: Option<String> = sqlx::query_scalar(
        "SELECT id FROM models WHERE config_file = $1 OR weights_file = $1
             OR id IN (SELECT model_name FROM model_files WHERE file_id = $1)
         ORDER BY position LIMIT 1",
    )
    .bind(id)
    .fetch_optional(&mut *connection)
    .await?;
    if let Some(model) = model {
        return Ok(DeleteFileOutcome::UsedByModel(model));
    }
    sqlx::query("DELETE FROM files WHERE id = $1").bind(id).execute(connection).await?;
    Ok(DeleteFileOutcome::Deleted(Box::new(file)))
}

/// Removes the rows of files that have expired, unless a job that has not ended or a model needs
/// them; returns their blob keys.
pub(super) async fn remove_expired(
    connection: &mut SqliteConnection,
    now: i64,
) -> Result<Vec<String>, StoreError> {
    let keys = sqlx::query_scalar(concat!(
        "DELETE FROM files WHERE NOT ",
        is_there!(),
        " AND NOT EXISTS (SELECT 1 FROM models
             WHERE config_file = files.id OR weights_file = files.id)
         AND NOT EXISTS (SELECT 1 FROM model_files WHERE file_id = files.id)
         RETURNING blob_key"
    ))
    .bind(now)
    .fetch_all(connection)
    .await?;
    Ok(keys)
}

/// Every blob key that a row names.
pub(super) async fn blob_keys(
    connection: &mut SqliteConnection,
) -> Result<Vec<String>, StoreError> {
    let query = "SELECT blob_key FROM files UNION ALL SELECT blob_key FROM upload_parts";
    Ok(sqlx::query_scalar(query).fetch_all(connection).await?)
}

/// Fails with [`StoreError::MissingFile`] when the project has no file `id`.
pub(super) async fn require(
    connection: &mut SqliteConnection,
    project: &Project,
    id: &str,
    now: i64,
) -> Result<(), StoreError> {
    by_id(connection, id, now)
        .await?
        .filter(|file| file.project == *project)
        .map(|_there| ())
        .ok_or_else(|| StoreError::MissingFile(id.to_owned()))
}
