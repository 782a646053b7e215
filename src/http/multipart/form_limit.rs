//! A form's body that its reader cannot take into memory whole.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};

use axum::body::{Body, BodyDataStream, Bytes};
use futures_util::{Stream, StreamExt};

/// Most bytes that have come in and are not yet those of a field: heads of fields, and what stands
/// between them.
const MAX_UNREAD_BYTES: usize = 1 << 20;

/// How many bytes of a form have come in and are not yet those of a field.
#[derive(Clone, Default)]
pub(in crate::http) struct Unread(Arc<Count>);

#[derive(Default)]
struct Count {
    bytes: AtomicUsize,
    /// Whether the body has waited for its reader since that last went on.
    has_waited: AtomicBool,
}

impl Unread {
    /// So many are a field's now.
    pub(in crate::http) fn take(&self, bytes: usize) {
        self.0.bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.went_on();
    }

    /// The reader has found something.
    pub(in crate::http) fn went_on(&self) {
        self.0.has_waited.store(false, Ordering::Relaxed);
    }
}

/// A form's body that waits for its reader, which otherwise takes all there is into memory before it
/// looks at any of it, and ends when that finds nothing to read in [`MAX_UNREAD_BYTES`].
pub(in crate::http) fn metered(body: Body, unread: &Unread) -> Body {
    Body::from_stream(Metered { body: body.into_data_stream(), unread: unread.clone() })
}

struct Metered {
    body: BodyDataStream,
    unread: Unread,
}

/// Why a form ends before its end.
#[derive(Debug, thiserror::Error)]
#[error("the head of a field, or what stands before it, has more than {MAX_UNREAD_BYTES} bytes")]
struct TooMuchUnread;

impl Stream for Metered {
    type Item = Result<Bytes, axum::Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let count = Arc::clone(&self.unread.0);
        if count.bytes.load(Ordering::Relaxed) > MAX_UNREAD_BYTES {
            if count.has_waited.swap(true, Ordering::Relaxed) {
                return Poll::Ready(Some(Err(axum::Error::new(TooMuchUnread))));
            }
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let next = self.body.poll_next_unpin(context);
        if let Poll::Ready(Some(Ok(bytes))) = &next {
            count.bytes.fetch_add(bytes.len(), Ordering::Relaxed);
        }
        next
    }
}
