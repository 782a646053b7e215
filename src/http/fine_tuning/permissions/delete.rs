//! Deletes a permission.

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use super::path::PermissionPath;
use crate::domain::error_code::ErrorCode;
use crate::http::error::{ApiError, ApiResult, ErrorBody};
use crate::http::middleware::authenticate::Caller;
use crate::http::state::AppState;
use crate::util::excerpt::excerpt;

/// What was deleted.
#[derive(Debug, Serialize, ToSchema)]
pub struct DeletedPermission {
    /// Its id.
    id: String,
    /// `checkpoint.permission`.
    object: &'static str,
    /// Always true.
    deleted: bool,
}

/// Deletes a permission: its project may no longer use the checkpoint.
#[utoipa::path(
    delete,
    path = "/fine_tuning/checkpoints/{fine_tuned_model_checkpoint}/permissions/{permission_id}",
    tag = "fine-tuning", operation_id = "deleteFineTuningCheckpointPermission",
    params(
        ("fine_tuned_model_checkpoint" = String, Path, description = "ft:…"),
        ("permission_id" = String, Path, description = "cp_…")
    ),
    responses(
        (status = 200, body = DeletedPermission), (status = 400, body = ErrorBody),
        (status = 404, body = ErrorBody)
    )
)]
pub(super) async fn delete(
    State(state): State<AppState>,
    caller: Caller,
    path: PermissionPath,
) -> ApiResult<Json<DeletedPermission>> {
    let PermissionPath { checkpoint, permission: id } = path;
    super::checkpoint::check_checkpoint(&state, &caller, &checkpoint).await?;
    if !state.store.delete_permission(&checkpoint, &id).await? {
        let message = format!("{checkpoint} has no permission {:?}", excerpt(&id));
        return Err(
            ApiError::new(ErrorCode::PermissionNotFound, message).with_param("permission_id")
        );
    }
    Ok(Json(DeletedPermission { id, object: "checkpoint.permission", deleted: true }))
}
