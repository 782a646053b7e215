//! Deletes a fine-tuned model and its checkpoints.

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use crate::domain::error_code::ErrorCode;
use crate::http::error::{ApiError, ApiResult, ErrorBody};
use crate::http::extract::PathId;
use crate::http::middleware::authenticate::Caller;
use crate::http::state::AppState;
use crate::store::DeleteModelOutcome;

/// What was deleted.
#[derive(Debug, Serialize, ToSchema)]
pub struct DeletedModel {
    /// Its id.
    id: String,
    /// `model`.
    object: &'static str,
    /// Always true.
    deleted: bool,
}

/// Deletes a fine-tuned model.
#[utoipa::path(
    delete, path = "/models/{*model}", tag = "models", operation_id = "deleteModel",
    params(("model" = String, Path, description = "ft:…")),
    responses(
        (status = 200, body = DeletedModel), (status = 400, body = ErrorBody),
        (status = 403, body = ErrorBody), (status = 404, body = ErrorBody)
    )
)]
pub async fn delete(
    State(state): State<AppState>,
    caller: Caller,
    PathId(id): PathId,
) -> ApiResult<Json<DeletedModel>> {
    if state.base_models.find(&id).await.map_err(ApiError::internal)?.is_some() {
        let message = "a base model is removed with `hone models remove`, not through the API";
        return Err(ApiError::new(ErrorCode::PermissionDenied, message).with_param("model"));
    }
    if super::find_own(&state, &caller, &id).await?.is_none() {
        return Err(super::no_such_model(&state, &caller, &id).await?);
    }
    match state.store.delete_model(&id).await? {
        DeleteModelOutcome::Deleted => {}
        DeleteModelOutcome::UsedByJob(job) => {
            let message = format!(
                "the job {job} continues from this model: wait for its end, or cancel it first"
            );
            return Err(ApiError::new(ErrorCode::InvalidRequest, message).with_param("model"));
        }
        DeleteModelOutcome::NotFound => {
            return Err(super::no_such_model(&state, &caller, &id).await?);
        }
    }
    Ok(Json(DeletedModel { id, object: "model", deleted: true }))
}
