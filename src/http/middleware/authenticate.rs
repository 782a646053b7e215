//! Authentication: the API key of a request, and its project.
//!
//! Every request looks its key up in the store, so that a key that another process revokes is refused from
//! then on. As long as no key was ever created, requests need none and belong to the default project. The
//! server then listens on this machine only.

use axum::extract::{FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use axum::middleware::Next;
use axum::response::Response;

use crate::domain::api_key::{ApiKey, KeyDigest};
use crate::domain::error_code::ErrorCode;
use crate::domain::project::Project;
use crate::http::error::{ApiError, ApiResult};
use crate::http::server::held_body::hold;
use crate::http::state::AppState;

/// The authenticated caller of a request. Every request that reaches a route of the API has one.
#[derive(Debug, Clone)]
pub struct Caller {
    /// The project of the request.
    pub(in crate::http) project: Project,
    /// Id of the API key; `None` while there are no keys.
    pub(in crate::http) key_id: Option<String>,
    /// Digest of the API key that was sent.
    sent: Option<KeyDigest>,
}

impl Caller {
    /// Fails once the key is revoked. Long replies check it from time to time.
    pub(in crate::http) async fn check_key(&self, state: &AppState) -> ApiResult<()> {
        valid_key(state, self.sent.as_ref()).await.map(|_key| ())
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, ApiError> {
        let caller = parts.extensions.get::<Self>().cloned();
        caller.ok_or_else(|| ApiError::internal("a route without authentication needs a caller"))
    }
}

/// Adds the [`Caller`] to a request, or refuses the request.
pub(in crate::http) async fn authenticate(
    State(state): State<AppState>,
    mut request: Request,
    next: Next,
) -> ApiResult<Response> {
    let caller = caller(&state, request.headers()).await?;
    let Some(key_id) = caller.key_id.clone() else {
        request.extensions_mut().insert(caller);
        return Ok(next.run(request).await);
    };
    let Some(running) = state.running_requests.begin(&key_id) else {
        let message =
            "too many requests with this key run at once: wait until one has been answered";
        return Err(ApiError::new(ErrorCode::RateLimitExceeded, message));
    };
    request.extensions_mut().insert(caller);
    Ok(hold(next.run(request).await, running))
}

async fn caller(state: &AppState, headers: &HeaderMap) -> ApiResult<Caller> {
    let sent = sent_key(headers).map(KeyDigest::of);
    let key = valid_key(state, sent.as_ref()).await?;
    check_rate(state, key.as_ref().map(|key| key.id.as_str()))?;
    let (project, key_id) = match key {
        Some(key) => (key.project, Some(key.id)),
        None => (Project::default(), None),
    };
    Ok(Caller { project, key_id, sent })
}

/// The valid key of a request; `None` as long as no key was ever created.
async fn valid_key(state: &AppState, sent: Option<&KeyDigest>) -> ApiResult<Option<ApiKey>> {
    // Checked first: SDKs always send a key, and the lookup of one that does not exist costs a read.
    if !state.store.has_api_keys().await? {
        return Ok(None);
    }
    let Some(sent) = sent else {
        let message = "the request has no API key: send it as a header, Authorization: Bearer KEY";
        return Err(ApiError::new(ErrorCode::MissingApiKey, message));
    };
    match state.store.api_key(sent).await? {
        Some(key) if key.revoked_at.is_none() => Ok(Some(key)),
        _unknown_or_revoked => {
            // The key is not repeated in the message, because clients log replies.
            let message = "the API key is not known, or was revoked: the operator of the server creates \
                           keys with `hone keys create`";
            Err(ApiError::new(ErrorCode::InvalidApiKey, message))
        }
    }
}

/// Applies the rate limit. The error says when the next request may be sent.
fn check_rate(state: &AppState, key_id: Option<&str>) -> ApiResult<()> {
    state.limiter.take(key_id).map_err(|wait| {
        let message = "too many requests with this key: wait as long as Retry-After says";
        ApiError::new(ErrorCode::RateLimitExceeded, message).with_retry_after(wait)
    })
}

/// The API key that a client sends.
fn sent_key(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, key) = value.split_once(' ')?;
    let key = key.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !key.is_empty()).then_some(key)
}
