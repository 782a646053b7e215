//! A multipart form with one file field, whose bytes are staged in the blob store as they arrive and are never
//! held in memory.

mod file_name;
pub mod form_limit;
pub mod upload_digest;

use std::collections::BTreeMap;

use axum::extract::multipart::{Field, MultipartError, MultipartRejection};
use axum::extract::{DefaultBodyLimit, FromRequest, Multipart, Request};
use axum::http::header;

use self::form_limit::{BufferedBytes, limit_buffer};
use self::upload_digest::UploadDigest;
use super::error::{ApiError, ApiResult};
use super::state::AppState;
use crate::blobs::StagedBlob;
use crate::domain::error_code::ErrorCode;

/// Longest text field beside the file.
const MAX_FIELD_BYTES: usize = 4096;

/// Most text fields.
const MAX_FIELDS: usize = 64;

/// The file field that a form must have.
pub(super) struct FileField<'a> {
    /// Its name.
    pub(super) name: &'a str,
    /// Most bytes.
    pub(super) max_bytes: u64,
    /// The error text when there are more.
    pub(super) too_large: String,
    /// The blob key under which its bytes are staged.
    pub(super) key: &'a str,
}

/// A form that has been read.
pub(super) struct MultipartForm {
    /// The file, if the form had the field.
    pub(super) file: Option<ReceivedFile>,
    /// The text fields.
    pub(super) fields: BTreeMap<String, String>,
}

/// A file that was received whole.
pub(super) struct ReceivedFile {
    /// Its bytes. They are removed unless the blob is committed.
    pub(super) staged: StagedBlob,
    /// Its size.
    pub(super) bytes: u64,
    /// The file name as the client sent it.
    pub(super) filename: Option<String>,
}

/// Reads a form with the field `file`. Its bytes go to `digest` if there is one. Fields come in any order:
/// node streams send the file first.
pub(super) async fn read_form(
    state: &AppState,
    mut request: Request,
    file: &FileField<'_>,
    mut digest: Option<&mut UploadDigest>,
) -> ApiResult<MultipartForm> {
    // The file has a limit of its own, which counts its bytes as they arrive.
    DefaultBodyLimit::disable().apply(&mut request);
    let buffered = BufferedBytes::default();
    let request = request.map(|body| limit_buffer(body, &buffered));
    let not_multipart = |rejection| not_multipart(file.name, &rejection);
    let mut form = Multipart::from_request(request, state).await.map_err(not_multipart)?;
    let mut received = None;
    let mut fields = BTreeMap::new();
    while let Some(field) = form.next_field().await.map_err(broken)? {
        buffered.progress();
        let name = field.name().unwrap_or_default().to_owned();
        if name != file.name {
            if fields.len() == MAX_FIELDS {
                let message = format!("the form has more than {MAX_FIELDS} fields");
                return Err(ApiError::new(ErrorCode::InvalidRequest, message));
            }
            fields.insert(name, text(field, &buffered).await?);
        } else if received.is_none() {
            received = Some(receive(state, field, file, &buffered, digest.as_deref_mut()).await?);
        } else {
            let message = format!("the form has the field {name:?} twice");
            return Err(ApiError::field(name, message));
        }
    }
    Ok(MultipartForm { file: received, fields })
}

fn not_multipart(name: &str, rejection: &MultipartRejection) -> ApiError {
    let message =
        format!("the body must be multipart/form-data with the field {name:?}: {rejection}");
    ApiError::new(ErrorCode::UnsupportedMediaType, message)
}

fn broken(error: MultipartError) -> ApiError {
    tracing::debug!(%error, "a multipart form cannot be read");
    let message =
        "the multipart form is malformed, ended before it was complete, or came too slowly";
    ApiError::new(ErrorCode::InvalidRequest, message)
}

/// Stages the field's bytes under its key.
async fn receive(
    state: &AppState,
    mut field: Field<'_>,
    file: &FileField<'_>,
    buffered: &BufferedBytes,
    mut digest: Option<&mut UploadDigest>,
) -> ApiResult<ReceivedFile> {
    let disposition = field.headers().get(header::CONTENT_DISPOSITION);
    let filename = disposition.and_then(|value| file_name::file_name(value.as_bytes()));
    let mut staged = state.blobs.stage(file.key).await?;
    let mut bytes = 0;
    while let Some(chunk) = field.chunk().await.map_err(broken)? {
        buffered.hand_out(chunk.len());
        bytes += chunk.len() as u64;
        if bytes > file.max_bytes {
            // The bytes are removed before the reply.
            staged.discard().await;
            let error = ApiError::new(ErrorCode::FileTooLarge, file.too_large.clone());
            return Err(error.with_param(file.name));
        }
        if let Some(digest) = &mut digest {
            digest.update(chunk.clone()).await?;
        }
        staged.write(chunk).await?;
    }
    Ok(ReceivedFile { staged, bytes, filename })
}

async fn text(mut field: Field<'_>, buffered: &BufferedBytes) -> ApiResult<String> {
    let name = field.name().unwrap_or_default().to_owned();
    let mut bytes = Vec::new();
    while let Some(chunk) = field.chunk().await.map_err(broken)? {
        buffered.hand_out(chunk.len());
        bytes.extend_from_slice(&chunk);
        if bytes.len() > MAX_FIELD_BYTES {
            let message = format!("the field may have {MAX_FIELD_BYTES} bytes at most");
            return Err(ApiError::field(name, message));
        }
    }
    String::from_utf8(bytes).map_err(|_| ApiError::field(name, "the field is not UTF-8"))
}
