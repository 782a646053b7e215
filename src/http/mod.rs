//! Stage 1: a request arrives.
//!
//! [`router`] is the table of contents: every route, grouped by what it is about. Nouns are folders,
//! verbs are files. The OpenAPI document comes from the same declarations.

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
pub mod server;
mod state;
mod uploads;
mod webhook_endpoints;

use std::time::Duration;

use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue, Uri, header};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::sensitive_headers::SetSensitiveRequestHeadersLayer;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use utoipa_swagger_ui::SwaggerUi;

use self::error::ApiError;
pub use self::middleware::rate_limit::RequestLimiter;
pub use self::operations::openapi::document;
pub use self::state::{AppState, Shared};
use crate::domain::error_code::ErrorCode;
use crate::domain::ids;

/// Longest time that a request without big bytes and without generation may take.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Every route of OpenAI's surface.
fn api() -> OpenApiRouter<AppState> {
    let quick = OpenApiRouter::new()
        .routes(routes!(files::list::list))
        .routes(routes!(files::retrieve::retrieve, files::delete::delete))
        .routes(routes!(uploads::create::create))
        .routes(routes!(uploads::cancel::cancel))
        .routes(routes!(fine_tuning::list::list))
        .routes(routes!(fine_tuning::retrieve::retrieve))
        .routes(routes!(fine_tuning::cancel::cancel))
        .routes(routes!(fine_tuning::pause::pause))
        .routes(routes!(fine_tuning::resume::resume))
        .routes(routes!(fine_tuning::events::events))
        .routes(routes!(fine_tuning::checkpoints::checkpoints))
        .merge(fine_tuning::permissions::routes())
        .routes(routes!(fine_tuning::metrics::metrics))
        .routes(routes!(fine_tuning::report::report))
        .routes(routes!(fine_tuning::graders::validate))
        .routes(routes!(fine_tuning::graders::run))
        .routes(routes!(models::list::list))
        .routes(routes!(models::retrieve::retrieve, models::delete::delete))
        .routes(routes!(webhook_endpoints::create::create, webhook_endpoints::list::list))
        .routes(routes!(
            webhook_endpoints::retrieve::retrieve,
            webhook_endpoints::update::update,
            webhook_endpoints::delete::delete
        ))
        .routes(routes!(webhook_endpoints::rotate_secret::rotate_secret))
        .routes(routes!(webhook_endpoints::test::test))
        .routes(routes!(webhook_endpoints::deliveries::deliveries))
        .routes(routes!(webhook_endpoints::event_types::event_types))
        .layer(from_fn(in_time));
    OpenApiRouter::new()
        .merge(quick)
        .routes(routes!(files::create::create))
        .routes(routes!(files::content::content))
        // A dry run has a time limit of its own.
        .routes(routes!(fine_tuning::create::create))
        .routes(routes!(fine_tuning::adapter::adapter))
        .routes(routes!(uploads::add_part::add_part))
        .routes(routes!(uploads::complete::complete))
        .routes(routes!(chat::create::create))
        .routes(routes!(completions::create::create))
}

/// The whole server: the API under `/v1` and without it, which demands keys; health, the document and
/// its viewer, which do not. Scripts of web pages of `cors_origins` may use all of it.
pub fn router(state: AppState, cors_origins: Vec<HeaderValue>) -> Router {
    let (versioned, _) = OpenApiRouter::new().nest("/v1", api()).split_for_parts();
    let (plain, _) = api().split_for_parts();
    let guarded = versioned
        .merge(plain)
        .route_layer(from_fn_with_state(state.clone(), middleware::authenticate::authenticate));
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
        .layer(from_fn(server::body_timeout::read_to_the_end))
        .layer(from_fn(with_request_id))
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
        ": the models that hone trains and answers with read and write text alone"
    } else {
        ": /openapi.json lists what there is"
    };
    ApiError::new(ErrorCode::RouteNotFound, format!("there is no route {path}{hint}"))
}

async fn no_such_method(request: Request) -> ApiError {
    let message = format!("{} does not take {}", request.uri().path(), request.method());
    ApiError::new(ErrorCode::MethodNotAllowed, message)
}

/// Ends what takes longer than [`TIMEOUT`].
async fn in_time(request: Request, next: Next) -> Response {
    let Ok(response) = tokio::time::timeout(TIMEOUT, next.run(request)).await else {
        let message = format!("the server had no answer within {} seconds", TIMEOUT.as_secs());
        return ApiError::new(ErrorCode::TimedOut, message).into_response();
    };
    response
}

/// Gives every reply an `x-request-id`: the client's own, if it has the shape of one.
async fn with_request_id(request: Request, next: Next) -> Response {
    const NAME: HeaderName = HeaderName::from_static("x-request-id");
    let given = request.headers().get(&NAME).and_then(|value| value.to_str().ok());
    let is_usable = |id: &&str| {
        (1..=64).contains(&id.len())
            && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
    };
    let id = given.filter(is_usable).map_or_else(ids::new_request_id, str::to_owned);
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let mut response = next.run(request).await;
    tracing::debug!(request.id = id, %method, path, status = response.status().as_u16(), "answered");
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(NAME, value);
    }
    response
}
