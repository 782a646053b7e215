//! Permits other projects to use a checkpoint.

use axum::Json;
use axum::extract::State;

use super::object::PermissionList;
use super::path::PermissionsPath;
use crate::http::error::{ApiResult, ErrorBody};
use crate::http::extract::JsonObject;
use crate::http::middleware::authenticate::Caller;
use crate::http::state::AppState;
use crate::validate::permission_request;

/// What a client sends, for the OpenAPI document.
#[derive(utoipa::ToSchema)]
#[expect(dead_code, reason = "describes the body for the OpenAPI document")]
pub(super) struct CreatePermissions {
    /// Ids of 1 to 100 projects.
    project_ids: Vec<String>,
}

/// Lets projects use a fine-tuned model or checkpoint.
///
/// The reply holds a permission for each project; one that a project had already stays as it was.
#[utoipa::path(
    post, path = "/fine_tuning/checkpoints/{fine_tuned_model_checkpoint}/permissions",
    tag = "fine-tuning", operation_id = "createFineTuningCheckpointPermission",
    params(("fine_tuned_model_checkpoint" = String, Path, description = "ft:…")),
    request_body(content = CreatePermissions, content_type = "application/json"),
    responses(
        (status = 200, body = PermissionList), (status = 400, body = ErrorBody),
        (status = 404, body = ErrorBody)
    )
)]
pub(super) async fn create(
    State(state): State<AppState>,
    caller: Caller,
    PermissionsPath(checkpoint): PermissionsPath,
    JsonObject(body): JsonObject,
) -> ApiResult<Json<PermissionList>> {
    super::checkpoint::check_checkpoint(&state, &caller, &checkpoint).await?;
    let projects = permission_request::read(&body)?;
    match state.store.grant_permissions(&checkpoint, &projects).await? {
        Some(granted) => Ok(Json(PermissionList::new(granted, false))),
        None => Err(super::checkpoint::no_permissions_error(&state, &caller, &checkpoint).await?),
    }
}
