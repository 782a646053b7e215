//! A multipart form with one large field, which goes to the blobs as it comes in and is never held in
//! memory.

pub mod form_limit;
pub mod upload_digest;

use std::collections::BTreeMap;

use axum::extract::multipart::{Field, MultipartError, MultipartRejection};
use axum::extract::{DefaultBodyLimit, FromRequest, Multipart, Request};

use self::form_limit::{Unread, metered};
use self::upload_digest::Inspection;
use super::error::{ApiError, ApiResult};
use super::state::AppState;
use crate::blobs::Staged;
use crate::domain::error_code::ErrorCode;

/// Longest text field beside the large one.
const MAX_FIELD_BYTES: usize = 4096;

/// Most text fields.
const MAX_FIELDS: usize = 64;

/// A large field that is to come.
pub(super) struct Expected<'a> {
    /// Its name.
    pub(super) name: &'a str,
    /// Most bytes.
    pub(super) most_bytes: u64,
    /// What is said when there are more.
    pub(super) too_large: String,
    /// The blob that it becomes.
    pub(super) key: &'a str,
}

/// A form that has been read.
pub(super) struct Form {
    /// The large field, if the form had it.
    pub(super) large: Option<Received>,
    /// The others.
    pub(super) fields: BTreeMap<String, String>,
}

/// A large field that has come in whole.
pub(super) struct Received {
    /// The blob that its bytes become; they are removed unless it is committed.
    pub(super) staged: Staged,
    /// How many.
    pub(super) bytes: u64,
    /// The name that the client gave, as it came.
    pub(super) filename: Option<String>,
}

/// Reads a form with the field `large`, whose bytes are inspected if that is wanted. Fields come in any
/// order: node streams send the file first.
pub(super) async fn read_form(
    state: &AppState,
    mut request: Request,
    large: &Expected<'_>,
    mut inspection: Option<&mut Inspection>,
) -> ApiResult<Form> {
    // The limit counts the field's bytes as they come in.
    DefaultBodyLimit::disable().apply(&mut request);
    let unread = Unread::default();
    let request = request.map(|body| metered(body, &unread));
    let not_multipart = |rejection| not_multipart(large.name, &rejection);
    let mut form = Multipart::from_request(request, state).await.map_err(not_multipart)?;
    let mut received = None;
    let mut fields = BTreeMap::new();
    while let Some(field) = form.next_field().await.map_err(broken)? {
        unread.went_on();
        let name = field.name().unwrap_or_default().to_owned();
        if name != large.name {
            if fields.len() == MAX_FIELDS {
                let message = format!("the form has more than {MAX_FIELDS} fields");
                return Err(ApiError::new(ErrorCode::InvalidRequest, message));
            }
            fields.insert(name, text(field, &unread).await?);
        } else if received.is_none() {
            received =
                Some(receive(state, field, large, &unread, inspection.as_deref_mut()).await?);
        } else {
            let message = format!("the form has the field {name:?} twice");
            return Err(ApiError::field(name, message));
        }
    }
    Ok(Form { large: received, fields })
}

fn not_multipart(large: &str, rejection: &MultipartRejection) -> ApiError {
    let message =
        format!("the body must be multipart/form-data with the field {large:?}: {rejection}");
    ApiError::new(ErrorCode::UnsupportedMediaType, message)
}

fn broken(error: MultipartError) -> ApiError {
    tracing::debug!(%error, "a form cannot be read");
    let message = "the multipart form is broken, ended before it was complete, or came too slowly";
    ApiError::new(ErrorCode::InvalidRequest, message)
}

/// Stages the field's bytes under its key.
async fn receive(
    state: &AppState,
    mut field: Field<'_>,
    large: &Expected<'_>,
    unread: &Unread,
    mut inspection: Option<&mut Inspection>,
) -> ApiResult<Received> {
    let filename = field.file_name().map(str::to_owned);
    let mut staged = state.blobs.stage(large.key).await?;
    let mut bytes = 0;
    while let Some(chunk) = field.chunk().await.map_err(broken)? {
        unread.take(chunk.len());
        bytes += chunk.len() as u64;
        if bytes > large.most_bytes {
            // The bytes are gone when the client hears of it.
            staged.discard().await;
            let error = ApiError::new(ErrorCode::FileTooLarge, large.too_large.clone());
            return Err(error.with_param(large.name));
        }
        if let Some(inspection) = &mut inspection {
            inspection.see(chunk.clone()).await?;
        }
        staged.write(chunk).await?;
    }
    Ok(Received { staged, bytes, filename })
}

async fn text(mut field: Field<'_>, unread: &Unread) -> ApiResult<String> {
    let name = field.name().unwrap_or_default().to_owned();
    let mut bytes = Vec::new();
    while let Some(chunk) = field.chunk().await.map_err(broken)? {
        unread.take(chunk.len());
        bytes.extend_from_slice(&chunk);
        if bytes.len() > MAX_FIELD_BYTES {
            let message = format!("the field may have {MAX_FIELD_BYTES} bytes at most");
            return Err(ApiError::field(name, message));
        }
    }
    String::from_utf8(bytes).map_err(|_| ApiError::field(name, "the field is not UTF-8"))
}
