//! One model; its id may hold slashes, encoded or not.

use axum::Json;
use axum::extract::State;

use super::object::ModelObject;
use crate::http::error::{ApiError, ApiResult, ErrorBody};
use crate::http::extract::PathId;
use crate::http::middleware::authenticate::Caller;
use crate::http::state::AppState;

/// One model; names of checkpoints resolve too.
#[utoipa::path(
    get, path = "/models/{*model}", tag = "models", operation_id = "retrieveModel",
    params(("model" = String, Path, description = "Base model, ft:… or checkpoint")),
    responses((status = 200, body = ModelObject), (status = 404, body = ErrorBody))
)]
pub async fn retrieve(
    State(state): State<AppState>,
    caller: Caller,
    PathId(id): PathId,
) -> ApiResult<Json<ModelObject>> {
    if let Some(entry) = state.base_models.find(&id).await.map_err(ApiError::internal)? {
        return Ok(Json(entry.into()));
    }
    match super::find_usable(&state, &caller, &id).await? {
        Some(model) => Ok(Json(model.into())),
        None => Err(super::no_such_model(&state, &caller, &id).await?),
    }
}
