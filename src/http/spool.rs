//! A multipart form with one large field, which goes to the disk as it comes in and is never held in
//! memory.

use std::collections::BTreeMap;
use std::io::Write;

use axum::extract::multipart::{Field, MultipartError, MultipartRejection};
use axum::extract::{DefaultBodyLimit, FromRequest, Multipart, Request};
use bytes::Bytes;
use tempfile::NamedTempFile;
use tokio::sync::mpsc;

use super::error::{ApiError, ApiResult};
use super::state::AppState;
use crate::error_code::ErrorCode;

/// Longest text field beside the large one.
const MAX_FIELD_BYTES: usize = 4096;

/// Chunks on their way to a thread that works on them.
pub(super) const CHUNKS_IN_FLIGHT: usize = 8;

/// How large the large field may be.
pub(super) struct Limit {
    /// Most bytes.
    pub(super) bytes: u64,
    /// What is said when there are more.
    pub(super) message: String,
}

/// A form that has been read.
pub(super) struct Form<I> {
    /// The large field, if the form had it.
    pub(super) spooled: Option<Spooled<I>>,
    /// The others.
    pub(super) fields: BTreeMap<String, String>,
}

/// A field on the disk.
pub(super) struct Spooled<I> {
    /// Removed when it is dropped.
    pub(super) file: NamedTempFile,
    /// Its size.
    pub(super) bytes: u64,
    /// The name that the client gave, as it came.
    pub(super) filename: Option<String>,
    /// Who has seen every byte.
    pub(super) inspector: I,
}

/// Reads a form whose field `large` goes to the disk; `feed` shows its bytes to the inspector. Fields
/// come in any order: node streams send the file first.
pub(super) async fn read_form<I: Send + 'static>(
    state: &AppState,
    mut request: Request,
    large: &str,
    limit: &Limit,
    inspector: I,
    feed: fn(&mut I, &[u8]),
) -> ApiResult<Form<I>> {
    // The limit counts the field's bytes as they come in.
    DefaultBodyLimit::disable().apply(&mut request);
    let not_multipart = |rejection| not_multipart(large, &rejection);
    let mut form = Multipart::from_request(request, state).await.map_err(not_multipart)?;
    let mut inspector = Some(inspector);
    let mut spooled = None;
    let mut fields = BTreeMap::new();
    while let Some(field) = form.next_field().await.map_err(broken)? {
        let name = field.name().unwrap_or_default().to_owned();
        if name != large {
            fields.insert(name, text(field).await?);
        } else if let Some(inspector) = inspector.take() {
            spooled = Some(spool(state, field, limit, inspector, feed).await?);
        } else {
            let message = format!("the form has the field {large:?} twice");
            return Err(ApiError::field(large, message));
        }
    }
    Ok(Form { spooled, fields })
}

fn not_multipart(large: &str, rejection: &MultipartRejection) -> ApiError {
    let message =
        format!("the body must be multipart/form-data with the field {large:?}: {rejection}");
    ApiError::new(ErrorCode::UnsupportedMediaType, message)
}

fn broken(error: MultipartError) -> ApiError {
    tracing::debug!(%error, "a form cannot be read");
    let message = "the multipart form is broken, or ended before it was complete";
    ApiError::new(ErrorCode::InvalidRequest, message)
}

/// Writes the field's bytes to a file on a blocking thread, which also shows them to the inspector.
async fn spool<I: Send + 'static>(
    state: &AppState,
    mut field: Field<'_>,
    limit: &Limit,
    mut inspector: I,
    feed: fn(&mut I, &[u8]),
) -> ApiResult<Spooled<I>> {
    let filename = field.file_name().map(str::to_owned);
    let spool_dir = state.blobs.spool_dir().to_owned();
    let (sender, mut chunks) = mpsc::channel::<Bytes>(CHUNKS_IN_FLIGHT);
    let writer = tokio::task::spawn_blocking(move || -> std::io::Result<Spooled<I>> {
        let mut file = tempfile::Builder::new().prefix(".upload-").tempfile_in(spool_dir)?;
        let mut bytes = 0;
        while let Some(chunk) = chunks.blocking_recv() {
            file.write_all(&chunk)?;
            feed(&mut inspector, &chunk);
            bytes += chunk.len() as u64;
        }
        file.flush()?;
        Ok(Spooled { file, bytes, filename, inspector })
    });
    let mut received = 0;
    while let Some(chunk) = field.chunk().await.map_err(broken)? {
        received += chunk.len() as u64;
        if received > limit.bytes {
            drain(&mut field, limit.bytes).await;
            // The file is gone when the client hears of it.
            drop(sender);
            drop(writer.await);
            let error = ApiError::new(ErrorCode::FileTooLarge, limit.message.clone());
            return Err(error.with_param(field.name().unwrap_or_default()));
        }
        if sender.send(chunk).await.is_err() {
            // The writer has ended early and says why below.
            break;
        }
    }
    drop(sender);
    match writer.await.map_err(ApiError::internal)? {
        Ok(spooled) => Ok(spooled),
        Err(error) if error.kind() == std::io::ErrorKind::StorageFull => {
            Err(ApiError::new(ErrorCode::InsufficientStorage, "the server's disk is full"))
        }
        Err(error) => Err(ApiError::internal(error)),
    }
}

/// Reads on for a while without keeping anything: many clients look for a reply only once they have
/// sent everything, and would see a broken connection instead.
async fn drain(field: &mut Field<'_>, mut most: u64) {
    while let Ok(Some(chunk)) = field.chunk().await {
        let length = chunk.len() as u64;
        if length > most {
            return;
        }
        most -= length;
    }
}

async fn text(mut field: Field<'_>) -> ApiResult<String> {
    let name = field.name().unwrap_or_default().to_owned();
    let mut bytes = Vec::new();
    while let Some(chunk) = field.chunk().await.map_err(broken)? {
        bytes.extend_from_slice(&chunk);
        if bytes.len() > MAX_FIELD_BYTES {
            let message = format!("the field may have {MAX_FIELD_BYTES} bytes at most");
            return Err(ApiError::field(name, message));
        }
    }
    String::from_utf8(bytes).map_err(|_| ApiError::field(name, "the field is not UTF-8"))
}
