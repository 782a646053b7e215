//! Stage 1: a request arrives.
//!
//! A folder for each resource, with a file for each verb. `routes` lists the routes, `server` holds the
//! connections, `middleware` is what every request passes before its handler, `multipart` reads uploads,
//! `generation` is shared by chat and completions.

mod chat;
mod completions;
mod error;
mod extract;
mod files;
mod fine_tuning;
mod generation;
mod middleware;
mod models;
mod multipart;
mod operations;
mod reply;
mod routes;
pub mod server;
mod state;
mod uploads;
mod webhook_endpoints;

use axum::extract::Request;
use axum::http::{HeaderValue, Uri, header};
use axum::middleware::{from_fn, from_fn_with_state};
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Json, Router};
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::sensitive_headers::SetSensitiveRequestHeadersLayer;
use utoipa_axum::router::OpenApiRouter;
use utoipa_swagger_ui::SwaggerUi;

use self::error::ApiError;
pub use self::middleware::concurrency_limit::RunningRequests;
pub use self::middleware::rate_limit::RequestLimiter;
pub use self::operations::openapi::document;
use self::routes::api;
pub use self::state::{AppState, ServerState};
use crate::domain::error_code::ErrorCode;
use crate::util::excerpt::excerpt;

/// The whole server. The API, under `/v1` and at the root, requires API keys; health, metrics, the OpenAPI
/// document and its viewer do not. Web pages of `cors_origins` may call all of it; while there are no keys, no
/// other page may call any of it.
pub fn router(state: AppState, cors_origins: Vec<HeaderValue>) -> Router {
    let (versioned, _) = OpenApiRouter::new().nest("/v1", api()).split_for_parts();
    let (plain, _) = api().split_for_parts();
    let guarded = versioned
        .merge(plain)
        .route_layer(from_fn_with_state(state.clone(), middleware::authenticate::authenticate));
    let pages = middleware::web_pages::WebPages::new(state.clone(), &cors_origins);
    let document = document();
    let served = document.clone();
    let router = Router::new()
        .merge(guarded)
        .merge(operations::health::routes())
        .merge(operations::metrics::routes())
        .route("/openapi.json", get(move || async move { Json(served) }))
        .merge(SwaggerUi::new("/docs").url("/docs/openapi.json", document))
        .fallback(no_such_route)
        .method_not_allowed_fallback(no_such_method)
        .layer(CatchPanicLayer::custom(|_panic: Box<dyn std::any::Any + Send>| {
            ApiError::internal("a handler panicked").into_response()
        }))
        .layer(from_fn_with_state(pages, middleware::web_pages::refuse_foreign_pages))
        .layer(from_fn(server::body_timeout::enforce_body_timeout))
        .layer(from_fn(middleware::request_id::set_request_id))
        .layer(SetSensitiveRequestHeadersLayer::new([header::AUTHORIZATION]))
        .with_state(state);
    if cors_origins.is_empty() {
        return router;
    }
    router.layer(middleware::cors::layer(cors_origins))
}

async fn no_such_route(uri: Uri) -> ApiError {
    let path = uri.path();
    let is_below = |noun: &str| path.split('/').any(|part| part == noun);
    let hint = if is_below("responses") || is_below("completions") {
        ": hone answers chat at /v1/chat/completions"
    } else if is_below("images") {
        ": hone trains and serves text models only"
    } else {
        ": /openapi.json lists the routes"
    };
    let path = excerpt(path);
    ApiError::new(ErrorCode::RouteNotFound, format!("there is no route {path}{hint}"))
}

async fn no_such_method(request: Request) -> ApiError {
    let message = format!(
        "{} does not take {}",
        excerpt(request.uri().path()),
        excerpt(request.method().as_str())
    );
    ApiError::new(ErrorCode::MethodNotAllowed, message)
}
