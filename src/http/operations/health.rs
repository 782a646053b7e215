//! Whether the server lives, and whether it takes requests.

use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};

use crate::domain::error_code::ErrorCode;
use crate::http::error::{ApiError, ApiResult};
use crate::http::state::AppState;

pub(in crate::http) fn routes() -> Router<AppState> {
    Router::new().route("/healthz", get(healthz)).route("/readyz", get(readyz))
}

/// The process lives.
async fn healthz() -> Json<Value> {
    Json(json!({"status": "ok"}))
}

/// It takes requests: the database answers and no shutdown is under way.
async fn readyz(State(state): State<AppState>) -> ApiResult<Json<Value>> {
    if state.shutdown.is_cancelled() {
        return Err(ApiError::new(ErrorCode::ModelLoading, "the server is shutting down"));
    }
    state.store.ping().await?;
    Ok(Json(json!({"status": "ready"})))
}
