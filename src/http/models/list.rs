//! Lists the models that can be used.

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use super::object::ModelObject;
use crate::http::error::{ApiError, ApiResult};
use crate::http::middleware::authenticate::Caller;
use crate::http::state::AppState;

/// All models; there are no pages.
#[derive(Debug, Serialize, ToSchema)]
pub struct ModelList {
    /// `list`.
    object: &'static str,
    /// Base models by name, then fine-tuned ones, newest first.
    data: Vec<ModelObject>,
}

/// Lists models.
#[utoipa::path(
    get, path = "/models", tag = "models", operation_id = "listModels",
    responses((status = 200, body = ModelList))
)]
pub async fn list(State(state): State<AppState>, caller: Caller) -> ApiResult<Json<ModelList>> {
    let base = state.base_models.list().await.map_err(ApiError::internal)?;
    let tuned = state.store.list_models(&caller.project).await?;
    let data = base
        .iter()
        .cloned()
        .map(ModelObject::from)
        .chain(tuned.into_iter().map(ModelObject::from))
        .collect();
    Ok(Json(ModelList { object: "list", data }))
}
