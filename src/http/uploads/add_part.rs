//! Adds a part to an upload. Several may come at once and in any order.

use axum::Json;
use axum::extract::{Request, State};

use super::object::PartObject;
use crate::blobs::part_key;
use crate::config::MAX_PART_BYTES;
use crate::domain::error_code::ErrorCode;
use crate::domain::ids;
use crate::domain::upload::{UploadPart, UploadStatus};
use crate::http::error::{ApiError, ApiResult, ErrorBody};
use crate::http::extract::PathId;
use crate::http::middleware::authenticate::Caller;
use crate::http::multipart::{self, FileField};
use crate::http::state::AppState;
use crate::store::AddPartOutcome;

/// What a client sends.
#[derive(utoipa::ToSchema)]
#[expect(dead_code, reason = "describes the form for the OpenAPI document")]
struct PartForm {
    /// The bytes, 64 MiB at most.
    #[schema(value_type = String, format = Binary)]
    data: Vec<u8>,
}

/// Adds a part to an upload.
#[utoipa::path(
    post, path = "/uploads/{upload_id}/parts", tag = "uploads", operation_id = "addUploadPart",
    params(("upload_id" = String, Path, description = "upload_…")),
    request_body(content = PartForm, content_type = "multipart/form-data"),
    responses(
        (status = 200, body = PartObject),
        (status = 400, body = ErrorBody), (status = 404, body = ErrorBody),
        (status = 413, body = ErrorBody), (status = 415, body = ErrorBody),
        (status = 507, body = ErrorBody)
    )
)]
pub async fn add_part(
    State(state): State<AppState>,
    caller: Caller,
    PathId(upload_id): PathId,
    request: Request,
) -> ApiResult<Json<PartObject>> {
    let upload = super::find(&state, &caller, &upload_id).await?;
    if upload.status != UploadStatus::Pending {
        return Err(super::not_pending(&upload));
    }
    let id = ids::new_part_id();
    let blob_key = part_key(&id);
    let most = MAX_PART_BYTES;
    let file_field = FileField {
        name: "data",
        max_bytes: most,
        too_large: format!("a part may have {} MiB at most: cut smaller ones", most >> 20),
        key: &blob_key,
    };
    let form = multipart::read_form(&state, request, &file_field, None).await?;
    let Some(received) = form.file else {
        return Err(ApiError::field("data", "the form has no field \"data\" with the bytes"));
    };
    let part = UploadPart {
        blob_key,
        id,
        upload_id,
        created_at: state.clock.now(),
        bytes: received.bytes as i64,
    };
    received.staged.commit().await?;
    let refused = match state.store.add_part(&part).await {
        Ok(Some(AddPartOutcome::Added)) => return Ok(Json(part.into())),
        Ok(Some(AddPartOutcome::NotPending(upload))) => super::not_pending(&upload),
        Ok(Some(AddPartOutcome::TooMuch(upload))) => {
            let message = format!(
                "the parts of the upload {:?} hold more than twice the {} bytes for which it was \
                 created, or are too many",
                upload.id, upload.bytes
            );
            ApiError::new(ErrorCode::InvalidRequest, message).with_param("data")
        }
        Ok(None) => super::no_such_upload(&part.upload_id),
        Err(error) => error.into(),
    };
    super::remove_blobs(&state, vec![part.blob_key]).await;
    Err(refused)
}
