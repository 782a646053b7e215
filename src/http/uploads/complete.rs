//! Completes an upload: joins its parts into a file, in the order of the request. The bytes are hashed and
//! validated as they are copied, and never held in memory.

use std::collections::HashMap;

use axum::Json;
use axum::extract::State;
use futures_util::TryStreamExt;

use super::object::UploadObject;
use crate::blobs::{BlobError, StagedBlob, upload_key};
use crate::domain::file::{FilePurpose, FileRecord};
use crate::domain::ids;
use crate::domain::upload::{Upload, UploadPart, UploadStatus};
use crate::http::error::{ApiError, ApiResult, ErrorBody};
use crate::http::extract::{JsonObject, PathId};
use crate::http::middleware::authenticate::Caller;
use crate::http::multipart::upload_digest::UploadDigest;
use crate::http::state::AppState;
use crate::store::CompleteUploadOutcome;
use crate::util::excerpt::excerpt;
use crate::validate::upload_request::{self, UploadCompletion};

/// What a client sends, for the OpenAPI document.
#[derive(utoipa::ToSchema)]
#[expect(dead_code, reason = "describes the body for the OpenAPI document")]
struct CompleteUpload {
    /// The parts, in the order of their bytes.
    part_ids: Vec<String>,
    /// MD5 of the whole file, in hex; checked when it is stated.
    md5: Option<String>,
}

/// Completes an upload.
#[utoipa::path(
    post, path = "/uploads/{upload_id}/complete", tag = "uploads",
    operation_id = "completeUpload",
    params(("upload_id" = String, Path, description = "upload_…")),
    request_body(content = CompleteUpload, content_type = "application/json"),
    responses(
        (status = 200, body = UploadObject), (status = 400, body = ErrorBody),
        (status = 404, body = ErrorBody), (status = 507, body = ErrorBody)
    )
)]
pub async fn complete(
    State(state): State<AppState>,
    caller: Caller,
    PathId(id): PathId,
    JsonObject(body): JsonObject,
) -> ApiResult<Json<UploadObject>> {
    let completion = upload_request::read_completion(&body)?;
    // The parts are read before the upload: an upload that is still pending then had all of them.
    let parts = state.store.upload_parts(&id).await?;
    let upload = super::find(&state, &caller, &id).await?;
    if upload.status != UploadStatus::Pending {
        return completed_before(&state, upload, &completion).await;
    }
    let parts = in_order(&upload, parts, &completion.part_ids)?;
    let file = match join(&state, &upload, &parts, completion.md5.as_deref()).await? {
        Some(file) => file,
        // Another request has cancelled or completed the upload meanwhile, and its parts are gone.
        None => {
            let upload = super::find(&state, &caller, &id).await?;
            return completed_before(&state, upload, &completion).await;
        }
    };
    let completed = match state.store.complete_upload(&id, &completion.part_ids, &file).await {
        Ok(completed) => completed,
        Err(error) => {
            super::remove_blobs(&state, vec![file.blob_key]).await;
            return Err(error.into());
        }
    };
    match completed {
        Some(CompleteUploadOutcome::Completed(upload, unneeded)) => {
            // Nothing here may fail: clients repeat a failed request.
            super::remove_blobs(&state, unneeded).await;
            Ok(Json(UploadObject::new(upload, Some(file))))
        }
        Some(CompleteUploadOutcome::NotPending(upload)) => {
            super::remove_blobs(&state, vec![file.blob_key]).await;
            completed_before(&state, upload, &completion).await
        }
        None => Err(super::no_such_upload(&id)),
    }
}

/// The reply when the upload is not pending: a replay if the request is the same as the first one.
async fn completed_before(
    state: &AppState,
    upload: Upload,
    completion: &UploadCompletion,
) -> ApiResult<Json<UploadObject>> {
    if upload.status != UploadStatus::Completed || upload.part_ids != completion.part_ids {
        return Err(super::not_pending(&upload));
    }
    let file = match &upload.file_id {
        Some(id) => state.store.file(id).await?,
        None => None,
    };
    Ok(Json(UploadObject::new(upload, file)))
}

/// The parts in the order of the request. Together they must have the size of the upload.
fn in_order(
    upload: &Upload,
    parts: Vec<UploadPart>,
    part_ids: &[String],
) -> ApiResult<Vec<UploadPart>> {
    let mut parts: HashMap<String, UploadPart> =
        parts.into_iter().map(|part| (part.id.clone(), part)).collect();
    let mut ordered = Vec::with_capacity(part_ids.len());
    for (index, id) in part_ids.iter().enumerate() {
        // Removed, so that the same part is not found twice.
        let Some(part) = parts.remove(id) else {
            let id = excerpt(id);
            let message = format!(
                "{id:?} is not a part of the upload {:?}, or is twice in the list",
                upload.id
            );
            return Err(ApiError::field(format!("part_ids[{index}]"), message));
        };
        ordered.push(part);
    }
    let total: i64 = ordered.iter().map(|part| part.bytes).sum();
    if total != upload.bytes {
        let message = format!(
            "the parts have {total} bytes together, and the upload was created for {}",
            upload.bytes
        );
        return Err(ApiError::field("part_ids", message));
    }
    Ok(ordered)
}

/// Joins the parts under the key of a new file; `None` when one of them is gone.
async fn join(
    state: &AppState,
    upload: &Upload,
    parts: &[UploadPart],
    md5: Option<&str>,
) -> ApiResult<Option<FileRecord>> {
    let mut upload_digest = UploadDigest::new(md5.is_some());
    let id = ids::new_file_id();
    let blob_key = upload_key(&id);
    let mut joined = state.blobs.stage(&blob_key).await?;
    for part in parts {
        let appended = append(state, part, &mut joined, &mut upload_digest).await;
        if !matches!(appended, Ok(true)) {
            joined.discard().await;
            return appended.map(|_is_gone| None);
        }
    }
    let digest = upload_digest.finish().await?;
    if let (Some(stated), Some(found)) = (md5, &digest.md5)
        && stated != found
    {
        let message = format!(
            "the md5 of the whole is {found}, not {stated}: a part is damaged, missing or in the \
             wrong place"
        );
        joined.discard().await;
        return Err(ApiError::field("md5", message));
    }
    joined.commit().await?;
    let created_at = state.clock.now();
    Ok(Some(FileRecord {
        id,
        project: upload.project.clone(),
        bytes: upload.bytes,
        created_at,
        expires_at: upload.file_lifetime.map(|seconds| created_at.saturating_add(seconds)),
        filename: upload.filename.clone(),
        purpose: upload.purpose,
        sha256: digest.sha256,
        blob_key,
        report: (upload.purpose == FilePurpose::FineTune).then_some(digest.report),
    }))
}

/// Appends a part's bytes; whether it was there.
async fn append(
    state: &AppState,
    part: &UploadPart,
    joined: &mut StagedBlob,
    upload_digest: &mut UploadDigest,
) -> ApiResult<bool> {
    let (_size, mut chunks) = match state.blobs.stream(&part.blob_key, None).await {
        Err(BlobError::NotFound(_)) => return Ok(false),
        found => found?,
    };
    while let Some(chunk) = chunks.try_next().await? {
        upload_digest.update(chunk.clone()).await?;
        joined.write(chunk).await?;
    }
    Ok(true)
}
