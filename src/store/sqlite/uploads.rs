//! SQL of uploads and their parts.

use sqlx::SqliteConnection;

use super::{files, rows};
use crate::domain::file::FileRecord;
use crate::domain::upload::{Upload, UploadPart, UploadStatus};
use crate::store::{
    AddPartOutcome, CancelUploadOutcome, CompleteUploadOutcome, MAX_PARTS, StoreError,
};

/// Adds a row.
pub(super) async fn insert(
    connection: &mut SqliteConnection,
    upload: &Upload,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO uploads (id, created_at, expires_at, bytes, filename, purpose, file_lifetime,
                              status, project)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
    )
    .bind(&upload.id)
    .bind(upload.created_at)
    .bind(upload.expires_at)
    .bind(upload.bytes)
    .bind(&upload.filename)
    .bind(upload.purpose.as_str())
    .bind(upload.file_lifetime)
    .bind(upload.status.as_str())
    .bind(upload.project.as_str())
    .execute(connection)
    .await?;
    Ok(())
}

/// The row of `id`; one whose time is over has expired, whether that was noted or not.
pub(super) async fn by_id(
    connection: &mut SqliteConnection,
    id: &str,
    now: i64,
) -> Result<Option<Upload>, StoreError> {
    let Some(mut upload) = as_noted(connection, id).await? else {
        return Ok(None);
    };
    if upload.status == UploadStatus::Pending && upload.expires_at <= now {
        upload.status = UploadStatus::Expired;
    }
    Ok(Some(upload))
}

async fn as_noted(
    connection: &mut SqliteConnection,
    id: &str,
) -> Result<Option<Upload>, StoreError> {
    let row = sqlx::query("SELECT * FROM uploads WHERE id = $1")
        .bind(id)
        .fetch_optional(connection)
        .await?;
    row.as_ref().map(rows::upload).transpose()
}

/// Adds a part, unless the upload takes none or has more than it can need.
pub(super) async fn add_part(
    connection: &mut SqliteConnection,
    part: &UploadPart,
    now: i64,
) -> Result<Option<AddPartOutcome>, StoreError> {
    let Some(upload) = by_id(connection, &part.upload_id, now).await? else {
        return Ok(None);
    };
    if upload.status != UploadStatus::Pending {
        return Ok(Some(AddPartOutcome::NotPending(upload)));
    }
    let (parts, bytes): (i64, i64) = sqlx::query_as(
        "SELECT count(*), coalesce(sum(bytes), 0) FROM upload_parts WHERE upload_id = $1",
    )
    .bind(&part.upload_id)
    .fetch_one(&mut *connection)
    .await?;
    // Twice, because a part whose reply was lost is sent again.
    if parts >= MAX_PARTS || bytes.saturating_add(part.bytes) > upload.bytes.saturating_mul(2) {
        return Ok(Some(AddPartOutcome::TooMuch(upload)));
    }
    sqlx::query(
        "INSERT INTO upload_parts (id, upload_id, created_at, bytes, blob_key)
         VALUES ($1, $2, $3, $4, $5)",
    )
    .bind(&part.id)
    .bind(&part.upload_id)
    .bind(part.created_at)
    .bind(part.bytes)
    .bind(&part.blob_key)
    .execute(connection)
    .await?;
    Ok(Some(AddPartOutcome::Added))
}

/// Every part of an upload, in no order that matters.
pub(super) async fn parts(
    connection: &mut SqliteConnection,
    upload_id: &str,
) -> Result<Vec<UploadPart>, StoreError> {
    let found = sqlx::query("SELECT * FROM upload_parts WHERE upload_id = $1")
        .bind(upload_id)
        .fetch_all(connection)
        .await?;
    found.iter().map(rows::upload_part).collect()
}

/// Turns an upload into a file. One that was begun in time may end late, so the clock is not asked.
pub(super) async fn complete(
    connection: &mut SqliteConnection,
    id: &str,
    part_ids: &[String],
    file: &FileRecord,
) -> Result<Option<CompleteUploadOutcome>, StoreError> {
    let Some(upload) = as_noted(connection, id).await? else {
        return Ok(None);
    };
    if upload.status != UploadStatus::Pending {
        return Ok(Some(CompleteUploadOutcome::NotPending(upload)));
    }
    files::insert(connection, file).await?;
    sqlx::query("UPDATE uploads SET status = $1, part_ids = $2, file_id = $3 WHERE id = $4")
        .bind(UploadStatus::Completed.as_str())
        .bind(rows::to_json("uploads.part_ids", &part_ids)?)
        .bind(&file.id)
        .bind(id)
        .execute(&mut *connection)
        .await?;
    let unneeded = remove_parts(connection, id).await?;
    let completed = as_noted(connection, id).await?;
    Ok(completed.map(|upload| CompleteUploadOutcome::Completed(upload, unneeded)))
}

/// Ends an upload that has not become a file.
pub(super) async fn cancel(
    connection: &mut SqliteConnection,
    id: &str,
    now: i64,
) -> Result<Option<CancelUploadOutcome>, StoreError> {
    let Some(mut upload) = by_id(connection, id, now).await? else {
        return Ok(None);
    };
    match upload.status {
        UploadStatus::Pending => {}
        UploadStatus::Cancelled => return Ok(Some(CancelUploadOutcome::AlreadyCancelled(upload))),
        UploadStatus::Completed | UploadStatus::Expired => {
            return Ok(Some(CancelUploadOutcome::NotPending(upload)));
        }
    }
    upload.status = UploadStatus::Cancelled;
    let unneeded = end(connection, id, upload.status).await?;
    Ok(Some(CancelUploadOutcome::Cancelled(upload, unneeded)))
}

/// Notes that the time of uploads was over before `since`, and returns the blobs that they leave.
pub(super) async fn expire(
    connection: &mut SqliteConnection,
    since: i64,
) -> Result<Vec<String>, StoreError> {
    let expired: Vec<String> =
        sqlx::query_scalar("SELECT id FROM uploads WHERE status = $1 AND expires_at <= $2")
            .bind(UploadStatus::Pending.as_str())
            .bind(since)
            .fetch_all(&mut *connection)
            .await?;
    let mut unneeded = Vec::new();
    for id in &expired {
        unneeded.extend(end(connection, id, UploadStatus::Expired).await?);
    }
    Ok(unneeded)
}

/// Ends a pending upload and returns the blobs that it leaves.
async fn end(
    connection: &mut SqliteConnection,
    id: &str,
    status: UploadStatus,
) -> Result<Vec<String>, StoreError> {
    sqlx::query("UPDATE uploads SET status = $1 WHERE id = $2")
        .bind(status.as_str())
        .bind(id)
        .execute(&mut *connection)
        .await?;
    remove_parts(connection, id).await
}

async fn remove_parts(
    connection: &mut SqliteConnection,
    id: &str,
) -> Result<Vec<String>, StoreError> {
    let keys =
        sqlx::query_scalar("DELETE FROM upload_parts WHERE upload_id = $1 RETURNING blob_key")
            .bind(id)
            .fetch_all(connection)
            .await?;
    Ok(keys)
}
