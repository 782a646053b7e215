//! The rest of the path of the one route, split.

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};

use crate::domain::error_code::ErrorCode;
use crate::http::error::ApiError;
use crate::http::extract::PathId;

/// The end of the path of a list.
const LIST: &str = "/permissions";

/// The path of a checkpoint's permissions.
pub(super) struct PermissionsPath(pub(super) String);

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
pub(super) struct PermissionPath {
    pub(super) checkpoint: String,
    pub(super) permission: String,
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
