//! `/v1/fine_tuning/checkpoints/{checkpoint}/permissions`: which other projects may use a fine-tuned
//! model or checkpoint.
//!
//! The name of a checkpoint may contain slashes, encoded or not. So one route matches the rest of the path,
//! and [`PermissionsPath`] and [`PermissionPath`] split off its known end.

mod create;
mod delete;
mod list;
mod object;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;

use crate::domain::error_code::ErrorCode;
use crate::http::error::{ApiError, ApiResult};
use crate::http::extract::PathId;
use crate::http::middleware::authenticate::Caller;
use crate::http::models::{find_own, no_such_model};
use crate::http::state::AppState;

/// The end of the path of a list.
const LIST: &str = "/permissions";

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

/// The path of a checkpoint's permissions.
struct PermissionsPath(String);

impl PermissionsPath {
    fn of(path: &str) -> Option<Self> {
        let checkpoint = path.strip_suffix(LIST).filter(|checkpoint| !checkpoint.is_empty())?;
        Some(Self(checkpoint.to_owned()))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for PermissionsPath {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Response> {
        let path = PathId::from_request_parts(parts, state).await;
        let PathId(path) = path.map_err(IntoResponse::into_response)?;
        Self::of(&path).ok_or_else(|| wrong_path(parts, &path))
    }
}

/// The path of one permission.
struct PermissionPath {
    checkpoint: String,
    permission: String,
}

impl PermissionPath {
    fn of(path: &str) -> Option<Self> {
        let (list, permission) = path.rsplit_once('/')?;
        let PermissionsPath(checkpoint) = PermissionsPath::of(list)?;
        let permission = Some(permission.to_owned()).filter(|permission| !permission.is_empty())?;
        Some(Self { checkpoint, permission })
    }
}

impl<S: Send + Sync> FromRequestParts<S> for PermissionPath {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Response> {
        let path = PathId::from_request_parts(parts, state).await;
        let PathId(path) = path.map_err(IntoResponse::into_response)?;
        Self::of(&path).ok_or_else(|| wrong_path(parts, &path))
    }
}

/// The 405 of a wrong method, or the 404 of a wrong path.
fn wrong_path(parts: &Parts, path: &str) -> Response {
    let allow = match (PermissionsPath::of(path), PermissionPath::of(path)) {
        (Some(_list), _) => Some("GET,HEAD,POST"),
        (None, Some(_one)) => Some("DELETE"),
        (None, None) => None,
    };
    let message = format!(
        "there is no {} of /fine_tuning/checkpoints/{path}: below a checkpoint there are GET and POST \
         of /permissions, and DELETE of /permissions/{{permission_id}}",
        parts.method
    );
    let Some(allow) = allow else {
        return ApiError::new(ErrorCode::RouteNotFound, message).into_response();
    };
    let mut response = ApiError::new(ErrorCode::MethodNotAllowed, message).into_response();
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allow));
    response
}

/// The error of a model without permissions: it is a base model, which every project may use, or does not exist.
async fn no_permissions_error(
    state: &AppState,
    caller: &Caller,
    checkpoint: &str,
) -> ApiResult<ApiError> {
    if state.base_models.find(checkpoint).map_err(ApiError::internal)?.is_some() {
        let message = format!(
            "{checkpoint:?} is a base model, which every project may use: permissions are for \
             fine-tuned models and checkpoints"
        );
        return Ok(ApiError::field("fine_tuned_model_checkpoint", message));
    }
    Ok(no_such_model(state, caller, checkpoint).await?.with_param("fine_tuned_model_checkpoint"))
}

/// Refuses a checkpoint that does not exist or belongs to another project. A permission to use a checkpoint
/// is not a permission to share it.
async fn check_checkpoint(state: &AppState, caller: &Caller, checkpoint: &str) -> ApiResult<()> {
    match find_own(state, caller, checkpoint).await? {
        Some(_there) => Ok(()),
        None => Err(no_permissions_error(state, caller, checkpoint).await?),
    }
}
