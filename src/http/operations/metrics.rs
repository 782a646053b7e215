//! Metrics of the server for Prometheus, in the OpenMetrics format.

use axum::Router;
use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use axum::routing::get;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;

use crate::http::error::{ApiError, ApiResult};
use crate::http::state::AppState;

/// The format's media type.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

pub(in crate::http) fn routes() -> Router<AppState> {
    Router::new().route("/metrics", get(metrics))
}

/// Counters since the start, and gauges. Like `/healthz` it needs no key: it contains no names and no texts.
async fn metrics(State(state): State<AppState>) -> ApiResult<impl IntoResponse> {
    let mut registry = Registry::with_prefix("hone");
    state.models.statistics().register(registry.sub_registry_with_prefix("serve"));
    state.models.serving_load().register(registry.sub_registry_with_prefix("train"));
    let mut text = String::new();
    encode(&mut text, &registry).map_err(ApiError::internal)?;
    Ok(([(header::CONTENT_TYPE, OPEN_METRICS)], text))
}
