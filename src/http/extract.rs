//! Extractors of requests. Every rejection is an error in OpenAI's envelope.

use std::num::IntErrorKind;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, FromRequest, FromRequestParts, Path, Request};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use serde_json::{Map, Value};
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{Object, Schema, Type};
use utoipa::{PartialSchema, ToSchema};

use super::error::ApiError;
use super::middleware::web_pages::BrowserRequest;
use crate::config::MAX_JSON_BYTES;
use crate::domain::error_code::ErrorCode;
use crate::store::PageRequest;
use crate::util::duplicate_key::{self, DuplicateKey};
use crate::util::exact_json::ExactJson;
use crate::util::excerpt::excerpt;

/// Longest time that a JSON body may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(20);

/// A JSON object as the body. The content type does not matter, because OpenAI's own curl examples leave it
/// out, except where a web page may have sent the request: see [`BrowserRequest`].
pub struct JsonObject(pub Map<String, Value>);

impl<S: Send + Sync> FromRequest<S> for JsonObject {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        object(&json_bytes(request, state).await?).map(Self)
    }
}

/// The same, and the text of the body, in which numbers have every digit.
pub struct ExactJsonObject {
    /// The body as it is used for most fields.
    pub fields: Map<String, Value>,
    /// The body as it was sent.
    pub bytes: Bytes,
}

impl<S: Send + Sync> FromRequest<S> for ExactJsonObject {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let bytes = json_bytes(request, state).await?;
        Ok(Self { fields: object(&bytes)?, bytes })
    }
}

impl ExactJsonObject {
    /// The items of the list under `key`, with their numbers as they were sent; none where there is no list.
    ///
    /// # Errors
    /// A number of the body is too long.
    pub fn exact_list(&self, key: &str) -> Result<Vec<ExactJson>, ApiError> {
        if !self.fields.get(key).is_some_and(Value::is_array) {
            return Ok(Vec::new());
        }
        let text = String::from_utf8_lossy(&self.bytes);
        let body = ExactJson::read(&text)
            .map_err(|error| ApiError::new(ErrorCode::InvalidJson, error.to_string()))?;
        Ok(body.get(key).map(|list| list.items().to_vec()).unwrap_or_default())
    }
}

/// [`JsonObject`] where the body is optional. Without one it is an empty object.
pub struct OptionalJsonObject(pub Map<String, Value>);

impl<S: Send + Sync> FromRequest<S> for OptionalJsonObject {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let bytes = json_bytes(request, state).await?;
        if bytes.is_empty() {
            return Ok(Self(Map::new()));
        }
        object(&bytes).map(Self)
    }
}

/// The bytes of a JSON body.
async fn json_bytes<S: Send + Sync>(mut request: Request, state: &S) -> Result<Bytes, ApiError> {
    DefaultBodyLimit::max(MAX_JSON_BYTES).apply(&mut request);
    let must_say_json =
        request.extensions().get::<BrowserRequest>().is_some() && !says_json(&request);
    let body = Bytes::from_request(request, state);
    let Ok(body) = tokio::time::timeout(BODY_TIMEOUT, body).await else {
        let message = format!("the body took more than {} s to arrive", BODY_TIMEOUT.as_secs());
        return Err(ApiError::new(ErrorCode::InvalidRequest, message));
    };
    let body = body.map_err(|rejection| {
        if rejection.into_response().status() == StatusCode::PAYLOAD_TOO_LARGE {
            let message = format!("a JSON body may have {MAX_JSON_BYTES} bytes at most");
            return ApiError::new(ErrorCode::FileTooLarge, message);
        }
        ApiError::new(ErrorCode::InvalidRequest, "the body ended before it was complete")
    })?;
    if must_say_json && !body.is_empty() {
        let message = "the request has headers of a browser (Origin or Sec-Fetch-…), and its body does not \
                       say that it is JSON: send it with Content-Type: application/json";
        return Err(ApiError::new(ErrorCode::UnsupportedMediaType, message));
    }
    Ok(body)
}

/// Whether the content type of a request is that of JSON.
fn says_json<B>(request: &axum::http::Request<B>) -> bool {
    let sent = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let kind = sent.unwrap_or_default().split(';').next().unwrap_or_default().trim();
    kind.eq_ignore_ascii_case("application/json")
}

/// Parses a body as an object. A repeated key is an error: its values may differ, and it is not known which
/// one is meant.
fn object(bytes: &Bytes) -> Result<Map<String, Value>, ApiError> {
    let value: serde_json_borrow::Value<'_> = serde_json::from_slice(bytes).map_err(|error| {
        ApiError::new(ErrorCode::InvalidJson, format!("the body is not valid JSON: {error}"))
    })?;
    let repeated = if value.is_object() { duplicate_key::find(&value) } else { None };
    if let Some(DuplicateKey { path, .. }) = repeated {
        let path = excerpt(&path);
        let message = format!("{path} is repeated in the body: send one of them");
        return Err(ApiError::new(ErrorCode::InvalidJson, message).with_param(path));
    }
    match Value::from(value) {
        Value::Object(object) => Ok(object),
        _ => Err(ApiError::new(ErrorCode::InvalidJson, "the body must be a JSON object")),
    }
}

/// The last part of the path, decoded once.
pub struct PathId(pub String);

impl<S: Send + Sync> FromRequestParts<S> for PathId {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let Path(id) = Path::<String>::from_request_parts(parts, state).await.map_err(|error| {
            ApiError::new(ErrorCode::InvalidRequest, format!("the path is not valid: {error}"))
        })?;
        Ok(Self(id))
    }
}

/// The query as decoded pairs.
pub struct Query(Vec<(String, String)>);

impl<S: Send + Sync> FromRequestParts<S> for Query {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, ApiError> {
        let query = parts.uri.query().unwrap_or_default();
        Ok(Self(form_urlencoded::parse(query.as_bytes()).into_owned().collect()))
    }
}

/// The parameter `limit` in the OpenAPI document: any positive whole number, because one above the maximum is
/// lowered to it.
pub struct Limit;

impl PartialSchema for Limit {
    fn schema() -> RefOr<Schema> {
        Object::builder().schema_type(Type::Integer).minimum(Some(1)).into()
    }
}

impl ToSchema for Limit {}

impl Query {
    /// The value of a key; the last one if it is repeated.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().rev().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    /// Every pair.
    pub fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// A key that is true or false; false when it is not there.
    pub fn switch(&self, key: &str) -> Result<bool, ApiError> {
        match self.get(key) {
            None | Some("" | "false" | "0") => Ok(false),
            Some("true" | "1") => Ok(true),
            Some(other) => {
                let other = excerpt(other);
                let message = format!("{key} is {other:?}; it can be true or false");
                Err(ApiError::field(key, message))
            }
        }
    }

    /// `after` and `limit`. A limit above `most` is lowered to it.
    pub fn page(&self, default: u32, most: u32) -> Result<PageRequest, ApiError> {
        let limit = match self.get("limit") {
            // openai-node sends null as an empty text.
            None | Some("") => default,
            Some(text) => match text.parse::<u32>() {
                Ok(limit) if limit > 0 => limit.min(most),
                Err(error) if *error.kind() == IntErrorKind::PosOverflow => most,
                _ => {
                    let text = excerpt(text);
                    let message = format!("limit is {text:?}; it must be a positive whole number");
                    return Err(ApiError::field("limit", message));
                }
            },
        };
        let after = self.get("after").filter(|after| !after.is_empty()).map(str::to_owned);
        Ok(PageRequest { after, limit })
    }
}
