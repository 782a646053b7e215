//! Creates an upload.

use axum::Json;
use axum::extract::State;
use serde_json::Value;

use super::object::UploadObject;
use crate::config::UPLOAD_LIFETIME_SECONDS;
use crate::domain::ids;
use crate::domain::upload::{Upload, UploadStatus};
use crate::http::error::{ApiResult, ErrorBody};
use crate::http::extract::JsonObject;
use crate::http::middleware::authenticate::Caller;
use crate::http::state::AppState;
use crate::validate::upload_request;

/// What a client sends, for the OpenAPI document.
#[derive(utoipa::ToSchema)]
#[expect(dead_code, reason = "describes the body for the OpenAPI document")]
struct CreateUpload {
    /// Name of the file.
    filename: String,
    /// `fine-tune`, `user_data` or `evals`.
    purpose: String,
    /// Size of the whole file.
    bytes: i64,
    /// Of the file.
    mime_type: String,
    /// `{"anchor": "created_at", "seconds": 3600}`: how long the file is kept.
    #[schema(value_type = Option<Object>)]
    expires_after: Option<Value>,
}

/// Creates an upload in parts.
#[utoipa::path(
    post, path = "/uploads", tag = "uploads", operation_id = "createUpload",
    request_body(content = CreateUpload, content_type = "application/json"),
    responses((status = 200, body = UploadObject), (status = 400, body = ErrorBody))
)]
pub async fn create(
    State(state): State<AppState>,
    caller: Caller,
    JsonObject(body): JsonObject,
) -> ApiResult<Json<UploadObject>> {
    let request = upload_request::read(&body)?;
    let created_at = state.clock.now();
    let upload = Upload {
        id: ids::new_upload_id(),
        project: caller.project,
        created_at,
        expires_at: created_at.saturating_add(UPLOAD_LIFETIME_SECONDS),
        bytes: request.bytes,
        filename: request.filename,
        purpose: request.purpose,
        file_lifetime: request.file_lifetime,
        status: UploadStatus::Pending,
        part_ids: Vec::new(),
        file_id: None,
    };
    state.store.insert_upload(&upload).await?;
    Ok(Json(UploadObject::new(upload, None)))
}
