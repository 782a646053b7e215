//! `/v1/fine_tuning/checkpoints/{checkpoint}/permissions`: which other projects may use a fine-tuned
//! model or checkpoint.
//!
//! The name of a checkpoint may contain slashes, encoded or not. So one route matches the rest of the path,
//! and [`path`] splits off its known end.

mod checkpoint;
mod create;
mod delete;
mod list;
mod object;
mod path;

use axum::routing::get;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;

use crate::http::state::AppState;

/// The three operations of the one route, for the OpenAPI document.
#[derive(OpenApi)]
#[openapi(paths(list::list, create::create, delete::delete))]
struct Documented;

/// The one route.
pub(in crate::http) fn routes() -> OpenApiRouter<AppState> {
    let methods = get(list::list).post(create::create).delete(delete::delete);
    OpenApiRouter::with_openapi(Documented::openapi())
        .route("/fine_tuning/checkpoints/{*rest}", methods)
}
