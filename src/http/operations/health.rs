//! Liveness and readiness of the server.

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

/// Liveness.
async fn healthz() -> Json<Value> {
    Json(json!({"status": "ok"}))
}

/// Readiness: the database answers and the server is not shutting down.
async fn readyz(State(state): State<AppState>) -> ApiResult<Json<Value>> {
    if state.shutdown.is_cancelled() {
        return Err(ApiError::new(ErrorCode::ModelLoading, "the server is shutting down"));
    }
    state.store.ping().await?;
    Ok(Json(json!({"status": "ready"})))
}
