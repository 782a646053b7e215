//! Bodies of requests as they come in: none may stand still, and none is left lying when its request is
//! refused.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, BodyDataStream, Bytes, HttpBody};
use axum::extract::Request;
use axum::http::header;
use axum::middleware::Next;
use axum::response::Response;
use futures_util::{Stream, StreamExt};
use tokio::time::{Instant, Sleep};

use crate::config::MAX_UPLOAD_BYTES;

/// Longest time without a byte. Connections have a limit, so that bodies that stand still would keep
/// everybody else out.
const IDLE: Duration = Duration::from_secs(30);

/// Fewest bytes in a second of waiting, on average after [`IDLE`]: a byte now and then is as good as none.
const LEAST_BYTES_PER_SECOND: f64 = 1024.0;

/// Longest time for what is left of a body whose request is answered.
const LAST_BYTES: Duration = Duration::from_secs(30);

/// Why a body ends before its end.
#[derive(Debug, thiserror::Error)]
#[error("the body came too slowly")]
struct TooSlow;

/// Guards a request's body; once the request is answered, reads what is left of it before the reply goes
/// out: many clients look for a reply only once they have sent everything, and would see a broken
/// connection instead of why they are refused.
pub(in crate::http) async fn read_to_the_end(request: Request, next: Next) -> Response {
    if request.body().is_end_stream() {
        return next.run(request).await;
    }
    // Such a client asks before it sends; it is not told to go on by reading what nobody wants.
    let asks_first = request.headers().contains_key(header::EXPECT);
    let left = Left::default();
    let lend = |body| Lent { incoming: Some(Incoming::new(body, IDLE)), left: Arc::clone(&left) };
    let request = request.map(|body| Body::from_stream(lend(body)));
    let response = next.run(request).await;
    let incoming = left.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(incoming) = incoming.filter(|incoming| incoming.has_begun || !asks_first) {
        _ = tokio::time::timeout(LAST_BYTES, discard(incoming)).await;
    }
    response
}

/// Reads without keeping anything, as much as the longest file has.
async fn discard(mut incoming: Incoming) {
    let mut most = MAX_UPLOAD_BYTES;
    while let Some(Ok(chunk)) = incoming.next().await {
        let Some(rest) = most.checked_sub(chunk.len() as u64) else { return };
        most = rest;
    }
}

/// Where a body is when nobody reads it any more.
type Left = Arc<Mutex<Option<Incoming>>>;

/// A body while a handler has it.
struct Lent {
    incoming: Option<Incoming>,
    left: Left,
}

impl Stream for Lent {
    type Item = Result<Bytes, axum::Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        match &mut self.incoming {
            Some(incoming) => incoming.poll_next_unpin(context),
            None => Poll::Ready(None),
        }
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        *self.left.lock().unwrap_or_else(PoisonError::into_inner) = self.incoming.take();
    }
}

/// A body that ends when it comes too slowly.
struct Incoming {
    /// `None` when it has ended.
    body: Option<BodyDataStream>,
    /// Longest time without a byte.
    patience: Duration,
    /// Time spent on waiting for bytes, not on what is done with them.
    waited: Duration,
    waits_since: Option<Instant>,
    received: u64,
    has_begun: bool,
    /// Ends `patience` after the waiting began.
    idle: Pin<Box<Sleep>>,
}

impl Incoming {
    fn new(body: Body, patience: Duration) -> Self {
        Self {
            body: Some(body.into_data_stream()),
            patience,
            waited: Duration::ZERO,
            waits_since: None,
            received: 0,
            has_begun: false,
            idle: Box::pin(tokio::time::sleep(patience)),
        }
    }

    fn is_too_slow(&self) -> bool {
        let counted = self.waited.saturating_sub(self.patience);
        (self.received as f64) < counted.as_secs_f64() * LEAST_BYTES_PER_SECOND
    }
}

impl Stream for Incoming {
    type Item = Result<Bytes, axum::Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let incoming = &mut *self;
        incoming.has_begun = true;
        let waits_since = incoming.waits_since.take();
        incoming.waited += waits_since.map_or(Duration::ZERO, |since| since.elapsed());
        let Some(body) = &mut incoming.body else { return Poll::Ready(None) };
        match body.poll_next_unpin(context) {
            Poll::Ready(Some(Ok(bytes))) => {
                incoming.received += bytes.len() as u64;
                if !incoming.is_too_slow() {
                    return Poll::Ready(Some(Ok(bytes)));
                }
            }
            Poll::Ready(ended) => {
                incoming.body = None;
                return Poll::Ready(ended);
            }
            Poll::Pending => {
                if waits_since.is_none() {
                    incoming.idle.as_mut().reset(Instant::now() + incoming.patience);
                }
                if incoming.idle.as_mut().poll(context).is_pending() {
                    incoming.waits_since = Some(Instant::now());
                    return Poll::Pending;
                }
            }
        }
        incoming.body = None;
        Poll::Ready(Some(Err(axum::Error::new(TooSlow))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What comes of a body whose pieces come after these milliseconds each: whether it came whole.
    async fn is_whole(milliseconds: &[u64], piece: &'static [u8]) -> bool {
        let pauses = milliseconds.to_vec();
        let pieces = futures_util::stream::iter(pauses).then(move |pause| async move {
            tokio::time::sleep(Duration::from_millis(pause)).await;
            Ok::<_, std::io::Error>(Bytes::from_static(piece))
        });
        let mut incoming = Incoming::new(Body::from_stream(pieces), Duration::from_secs(2));
        loop {
            match incoming.next().await {
                Some(Ok(_piece)) => {}
                Some(Err(_too_slow)) => return false,
                None => return true,
            }
        }
    }

    #[tokio::test]
    async fn a_body_may_be_slow_and_may_not_stand_still() {
        static MUCH: [u8; 64 << 10] = [0; 64 << 10];
        assert!(is_whole(&[0, 600, 600, 600, 600], &MUCH).await);
        assert!(!is_whole(&[0, 4000, 0], &MUCH).await);
        assert!(!is_whole(&[100; 50], b"a").await, "a byte now and then");
    }
}
