//! A multipart form with one large field, which goes to the blobs as it comes in and is never held in
//! memory.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use axum::body::{Body, BodyDataStream, Bytes};
use axum::extract::multipart::{Field, MultipartError, MultipartRejection};
use axum::extract::{DefaultBodyLimit, FromRequest, Multipart, Request};
use futures_util::{Stream, StreamExt};

use super::error::{ApiError, ApiResult};
use super::inspection::Inspection;
use super::state::AppState;
use crate::blobs::Staged;
use crate::error_code::ErrorCode;

/// Longest text field beside the large one.
const MAX_FIELD_BYTES: usize = 4096;

/// Most text fields.
const MAX_FIELDS: usize = 64;

/// Most bytes of a form that have come in and are not yet those of a field: heads of fields, and what
/// stands between them.
const MAX_UNREAD_BYTES: usize = 1 << 20;

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
    let meter = |body: Body| Metered {
        body: body.into_data_stream(),
        unread: unread.clone(),
        waited_at: None,
    };
    let request = request.map(|body| Body::from_stream(meter(body)));
    let not_multipart = |rejection| not_multipart(large.name, &rejection);
    let mut form = Multipart::from_request(request, state).await.map_err(not_multipart)?;
    let mut received = None;
    let mut fields = BTreeMap::new();
    while let Some(field) = form.next_field().await.map_err(broken)? {
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

/// How many bytes of a form have come in and are not yet those of a field.
#[derive(Clone, Default)]
struct Unread(Arc<AtomicUsize>);

impl Unread {
    /// So many are a field's now.
    fn take(&self, bytes: usize) {
        self.0.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// A form's body that waits for its reader, which otherwise takes all there is into memory before it
/// looks at any of it, and ends when that finds nothing to read in [`MAX_UNREAD_BYTES`].
struct Metered {
    body: BodyDataStream,
    unread: Unread,
    /// How many bytes were unread when it last waited.
    waited_at: Option<usize>,
}

/// Why a form ends before its end.
#[derive(Debug, thiserror::Error)]
#[error("the head of a field, or what stands before it, has more than {MAX_UNREAD_BYTES} bytes")]
struct TooMuchUnread;

impl Stream for Metered {
    type Item = Result<Bytes, axum::Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let unread = self.unread.0.load(Ordering::Relaxed);
        if unread > MAX_UNREAD_BYTES {
            if self.waited_at == Some(unread) {
                return Poll::Ready(Some(Err(axum::Error::new(TooMuchUnread))));
            }
            self.waited_at = Some(unread);
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let next = self.body.poll_next_unpin(context);
        if let Poll::Ready(Some(Ok(bytes))) = &next {
            self.unread.0.fetch_add(bytes.len(), Ordering::Relaxed);
        }
        next
    }
}
