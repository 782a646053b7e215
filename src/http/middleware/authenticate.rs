//! Who asks: the key of a request, and the project that it lets in to.
//!
//! Keys are looked up in the store at every request, so that one that is revoked by another process lets
//! nobody in as soon as that process says so. As long as no key was ever made, any key or
//! none is taken, and everything lies in the default project; the server then listens on this machine
//! alone.

use axum::extract::{FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use axum::middleware::Next;
use axum::response::Response;

use crate::domain::api_key::{ApiKey, KeyDigest};
use crate::domain::error_code::ErrorCode;
use crate::domain::project::Project;
use crate::http::error::{ApiError, ApiResult};
use crate::http::state::AppState;

/// Whom a request comes from. Every request that reaches a route of the API has one.
#[derive(Debug, Clone)]
pub struct Caller {
    /// What the request is about.
    pub(in crate::http) project: Project,
    /// What was shown as a key.
    shown: Option<KeyDigest>,
}

impl Caller {
    /// Fails once the key is revoked: replies that go on for long ask now and then.
    pub(in crate::http) async fn may_stay(&self, state: &AppState) -> ApiResult<()> {
        let_in(state, self.shown.as_ref()).await.map(|_key| ())
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, ApiError> {
        let caller = parts.extensions.get::<Self>().cloned();
        caller.ok_or_else(|| ApiError::internal("a route that asks for no key needs a caller"))
    }
}

/// Lets a request pass, with its [`Caller`], or refuses it.
pub(in crate::http) async fn authenticate(
    State(state): State<AppState>,
    mut request: Request,
    next: Next,
) -> ApiResult<Response> {
    let caller = caller(&state, request.headers()).await?;
    request.extensions_mut().insert(caller);
    Ok(next.run(request).await)
}

async fn caller(state: &AppState, headers: &HeaderMap) -> ApiResult<Caller> {
    let shown = shown_key(headers).map(KeyDigest::of);
    let key = let_in(state, shown.as_ref()).await?;
    take_turn(state, key.as_ref().map(|key| key.id.as_str()))?;
    Ok(Caller { project: key.map_or_else(Project::default, |key| key.project), shown })
}

/// The key by which somebody is let in; `None` as long as there are no keys.
async fn let_in(state: &AppState, shown: Option<&KeyDigest>) -> ApiResult<Option<ApiKey>> {
    // First: SDKs show a key in any case, and to look for one that nobody made would cost a read each time.
    if !state.store.has_api_keys().await? {
        return Ok(None);
    }
    let Some(shown) = shown else {
        let message = "the request has no API key: send it as a header, Authorization: Bearer KEY";
        return Err(ApiError::new(ErrorCode::MissingApiKey, message));
    };
    match state.store.api_key(shown).await? {
        Some(key) if key.revoked_at.is_none() => Ok(Some(key)),
        _unknown_or_revoked => {
            // The key is not repeated: replies are logged in more places than this.
            let message = "the API key is not known, or was revoked: whoever runs the server makes one \
                           with `hone keys create`";
            Err(ApiError::new(ErrorCode::InvalidApiKey, message))
        }
    }
}

/// Counts the request, or says when the next one may come.
fn take_turn(state: &AppState, key_id: Option<&str>) -> ApiResult<()> {
    state.limiter.take(key_id).map_err(|wait| {
        let message = "there are too many requests with this key: wait as long as Retry-After says";
        ApiError::new(ErrorCode::RateLimitExceeded, message).with_retry_after(wait)
    })
}

/// What a client shows as its key.
fn shown_key(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, key) = value.split_once(' ')?;
    let key = key.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !key.is_empty()).then_some(key)
}
