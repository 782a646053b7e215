//! `/v1/fine_tuning/checkpoints/{checkpoint}/permissions`: which other projects may use a fine-tuned
//! model or checkpoint.
//!
//! The name of a checkpoint may hold slashes, encoded or not, so one route takes the rest of the path
//! and [`PathOfList`] and [`PathOfOne`] take its known end off.

mod create;
mod delete;
mod list;
mod object;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::routing::get;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;

use crate::error_code::ErrorCode;
use crate::http::authenticate::Caller;
use crate::http::error::{ApiError, ApiResult};
use crate::http::extract::PathId;
use crate::http::models::{find_own, no_such_model};
use crate::http::state::AppState;

/// The end of the path of a list.
const LIST: &str = "/permissions";

/// What the document says of the one route.
#[derive(OpenApi)]
#[openapi(paths(list::list, create::create, delete::delete))]
struct Documented;

/// The one route.
pub(in crate::http) fn routes() -> OpenApiRouter<AppState> {
    let methods = get(list::list).post(create::create).delete(delete::delete);
    OpenApiRouter::with_openapi(Documented::openapi())
        .route("/fine_tuning/checkpoints/{*rest}", methods)
}

/// The checkpoint whose permissions a request is about.
struct PathOfList(String);

impl<S: Send + Sync> FromRequestParts<S> for PathOfList {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let PathId(path) = PathId::from_request_parts(parts, state).await?;
        match path.strip_suffix(LIST) {
            Some(checkpoint) if !checkpoint.is_empty() => Ok(Self(checkpoint.to_owned())),
            _ => Err(no_such_route(parts)),
        }
    }
}

/// The permission that a request is about.
struct PathOfOne {
    checkpoint: String,
    permission: String,
}

impl<S: Send + Sync> FromRequestParts<S> for PathOfOne {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let PathId(path) = PathId::from_request_parts(parts, state).await?;
        let taken = path.rsplit_once('/').and_then(|(list, permission)| {
            let checkpoint = list.strip_suffix(LIST)?;
            Some((checkpoint.to_owned(), permission.to_owned()))
        });
        match taken {
            Some((checkpoint, permission)) if !checkpoint.is_empty() && !permission.is_empty() => {
                Ok(Self { checkpoint, permission })
            }
            _ => Err(no_such_route(parts)),
        }
    }
}

fn no_such_route(parts: &Parts) -> ApiError {
    let message = format!(
        "there is no route {} {}: below a checkpoint there are GET and POST of /permissions, and \
         DELETE of /permissions/{{permission_id}}",
        parts.method,
        parts.uri.path()
    );
    ApiError::new(ErrorCode::RouteNotFound, message)
}

/// Why there are no permissions of a model: it is a base model, which all may use, or there is none.
async fn not_shared(state: &AppState, caller: &Caller, checkpoint: &str) -> ApiResult<ApiError> {
    if state.base_models.find(checkpoint).map_err(ApiError::internal)?.is_some() {
        let message = format!(
            "{checkpoint:?} is a base model, which every project may use: permissions are for \
             fine-tuned models and checkpoints"
        );
        return Ok(ApiError::field("fine_tuned_model_checkpoint", message));
    }
    Ok(no_such_model(state, caller, checkpoint).await?.with_param("fine_tuned_model_checkpoint"))
}

/// Refuses a checkpoint that is not there or is another project's: who was let in does not let others in.
async fn check_checkpoint(state: &AppState, caller: &Caller, checkpoint: &str) -> ApiResult<()> {
    match find_own(state, caller, checkpoint).await? {
        Some(_there) => Ok(()),
        None => Err(not_shared(state, caller, checkpoint).await?),
    }
}
