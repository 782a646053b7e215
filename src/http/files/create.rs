//! Uploads a file. Its bytes are streamed to the blob store, hashed and validated, and never held in memory.

use axum::Json;
use axum::extract::{Request, State};

use super::object::FileObject;
use crate::blobs::upload_key;
use crate::config::MAX_UPLOAD_BYTES;
use crate::domain::file::{FilePurpose, FileRecord};
use crate::domain::ids;
use crate::http::error::{ApiError, ApiResult, ErrorBody};
use crate::http::middleware::authenticate::Caller;
use crate::http::multipart::upload_digest::UploadDigest;
use crate::http::multipart::{self, FileField};
use crate::http::state::AppState;
use crate::validate::file_request;

/// Names of the form's fields for `expires_after`.
const ANCHOR: &str = "expires_after[anchor]";
const SECONDS: &str = "expires_after[seconds]";

/// What a client sends.
#[derive(utoipa::ToSchema)]
#[expect(dead_code, reason = "describes the form for the OpenAPI document")]
struct UploadForm {
    /// The bytes.
    #[schema(value_type = String, format = Binary)]
    file: Vec<u8>,
    /// `fine-tune`, `user_data` or `evals`.
    purpose: String,
    /// `created_at`.
    #[schema(rename = "expires_after[anchor]")]
    anchor: Option<String>,
    /// 3600 to 2592000.
    #[schema(rename = "expires_after[seconds]")]
    seconds: Option<String>,
}

/// Uploads a file.
#[utoipa::path(
    post, path = "/files", tag = "files", operation_id = "createFile",
    request_body(content = UploadForm, content_type = "multipart/form-data"),
    responses(
        (status = 200, body = FileObject),
        (status = 400, body = ErrorBody), (status = 413, body = ErrorBody),
        (status = 415, body = ErrorBody), (status = 507, body = ErrorBody)
    )
)]
pub async fn create(
    State(state): State<AppState>,
    caller: Caller,
    request: Request,
) -> ApiResult<Json<FileObject>> {
    let id = ids::new_file_id();
    let blob_key = upload_key(&id);
    let file_field = FileField {
        name: "file",
        max_bytes: MAX_UPLOAD_BYTES,
        too_large: format!(
            "a file may have {} MiB at most: send a larger one in parts, with POST /v1/uploads",
            MAX_UPLOAD_BYTES >> 20
        ),
        key: &blob_key,
    };
    let mut upload_digest = UploadDigest::new(false);
    let form = multipart::read_form(&state, request, &file_field, Some(&mut upload_digest)).await?;
    let field = |name: &str| form.fields.get(name).map(String::as_str);
    let purpose = file_request::purpose(field("purpose"))?;
    let Some(received) = form.file else {
        return Err(ApiError::field("file", "the form has no field \"file\" with the bytes"));
    };
    let filename =
        file_request::base_name(received.filename.as_deref().unwrap_or_default(), file_field.name)?;
    let lifetime = file_request::lifetime(field(ANCHOR), field(SECONDS), [ANCHOR, SECONDS])?;
    let digest = upload_digest.finish().await?;
    let created_at = state.clock.now();
    let file = FileRecord {
        blob_key,
        id,
        project: caller.project,
        bytes: received.bytes as i64,
        created_at,
        expires_at: lifetime.map(|seconds| created_at.saturating_add(seconds)),
        filename,
        purpose,
        sha256: digest.sha256,
        report: (purpose == FilePurpose::FineTune).then_some(digest.report),
    };
    received.staged.commit().await?;
    if let Err(error) = state.store.insert_file(&file).await {
        // A client that tries again and again must not fill the disk.
        state.blobs.delete(&file.blob_key).await?;
        return Err(error.into());
    }
    Ok(Json(file.into()))
}
