//! The form limit: how many bytes of a multipart body its parser may hold in memory.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};

use axum::body::{Body, BodyDataStream, Bytes};
use futures_util::{Stream, StreamExt};

/// Most bytes that the parser has taken and not yet handed out as part of a field, such as the headers of
/// fields.
const MAX_BUFFERED_BYTES: usize = 1 << 20;

/// How many bytes the parser has taken and not yet handed out as part of a field.
#[derive(Clone, Default)]
pub(in crate::http) struct BufferedBytes(Arc<BufferCount>);

#[derive(Default)]
struct BufferCount {
    bytes: AtomicUsize,
    /// Whether the body has waited for the parser since the parser's last progress.
    has_waited: AtomicBool,
}

impl BufferedBytes {
    /// The parser has handed out this many bytes of a field.
    pub(in crate::http) fn hand_out(&self, bytes: usize) {
        self.0.bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.progress();
    }

    /// The parser has found a field, or bytes of one.
    pub(in crate::http) fn progress(&self) {
        self.0.has_waited.store(false, Ordering::Relaxed);
    }
}

/// A body that the parser cannot buffer beyond the limit. The parser takes all that is ready before it parses
/// any of it, so the body pauses at the limit. It fails when the parser makes no progress from there.
pub(in crate::http) fn limit_buffer(body: Body, buffered: &BufferedBytes) -> Body {
    Body::from_stream(LimitedForm { body: body.into_data_stream(), buffered: buffered.clone() })
}

struct LimitedForm {
    body: BodyDataStream,
    buffered: BufferedBytes,
}

/// The parser found no field in [`MAX_BUFFERED_BYTES`].
#[derive(Debug, thiserror::Error)]
#[error("the header of a field, or the bytes before it, have more than {MAX_BUFFERED_BYTES} bytes")]
struct FormLimitExceeded;

impl Stream for LimitedForm {
    type Item = Result<Bytes, axum::Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let count = Arc::clone(&self.buffered.0);
        if count.bytes.load(Ordering::Relaxed) > MAX_BUFFERED_BYTES {
            if count.has_waited.swap(true, Ordering::Relaxed) {
                return Poll::Ready(Some(Err(axum::Error::new(FormLimitExceeded))));
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
