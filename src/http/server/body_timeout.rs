//! Timeouts of request bodies. A body that is idle or too slow is cut off. What a handler did not read is
//! drained before the reply.

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

/// Longest time without a byte. The number of connections is limited, so that idle bodies would block
/// other clients.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// Lowest average rate, over the time spent on waiting beyond [`IDLE_TIMEOUT`].
const MIN_BYTES_PER_SECOND: f64 = 1024.0;

/// Longest time for draining a body whose request is answered.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);

/// The body was idle, or too slow.
#[derive(Debug, thiserror::Error)]
#[error("the body came too slowly")]
struct BodyTimeout;

/// Applies the timeouts to a request's body. Drains what the handler did not read before the reply is sent:
/// many clients read a reply only after they have sent the whole body, and would see a broken connection
/// instead of the error.
pub(in crate::http) async fn enforce_body_timeout(request: Request, next: Next) -> Response {
    if request.body().is_end_stream() {
        return next.run(request).await;
    }
    // The client waits for `100 Continue` before it sends the body. Draining would ask it to send.
    let expects_continue = request.headers().contains_key(header::EXPECT);
    let returned = ReturnedBody::default();
    let hand_over = |body| HandlerBody {
        timed_body: Some(TimedBody::new(body, IDLE_TIMEOUT)),
        returned: Arc::clone(&returned),
    };
    let request = request.map(|body| Body::from_stream(hand_over(body)));
    let response = next.run(request).await;
    let timed_body = returned.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(timed_body) =
        timed_body.filter(|timed_body| timed_body.has_begun || !expects_continue)
    {
        _ = tokio::time::timeout(DRAIN_TIMEOUT, drain(timed_body)).await;
    }
    response
}

/// Reads and drops the rest of a body, up to the size of the largest upload.
async fn drain(mut timed_body: TimedBody) {
    let mut most = MAX_UPLOAD_BYTES;
    while let Some(Ok(chunk)) = timed_body.next().await {
        let Some(rest) = most.checked_sub(chunk.len() as u64) else { return };
        most = rest;
    }
}

/// The body after its handler has dropped it.
type ReturnedBody = Arc<Mutex<Option<TimedBody>>>;

/// A body in the hands of a handler. It goes to `returned` when it is dropped.
struct HandlerBody {
    timed_body: Option<TimedBody>,
    returned: ReturnedBody,
}

impl Stream for HandlerBody {
    type Item = Result<Bytes, axum::Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        match &mut self.timed_body {
            Some(timed_body) => timed_body.poll_next_unpin(context),
            None => Poll::Ready(None),
        }
    }
}

impl Drop for HandlerBody {
    fn drop(&mut self) {
        *self.returned.lock().unwrap_or_else(PoisonError::into_inner) = self.timed_body.take();
    }
}

/// A body that ends with [`BodyTimeout`] when it is idle or too slow.
struct TimedBody {
    /// `None` when it has ended.
    body: Option<BodyDataStream>,
    /// Longest time without a byte.
    idle_timeout: Duration,
    /// Time spent on waiting for bytes. Time in which the handler works does not count.
    waited: Duration,
    waiting_since: Option<Instant>,
    received: u64,
    has_begun: bool,
    /// Fires `idle_timeout` after the waiting began.
    idle: Pin<Box<Sleep>>,
}

impl TimedBody {
    fn new(body: Body, idle_timeout: Duration) -> Self {
        Self {
            body: Some(body.into_data_stream()),
            idle_timeout,
            waited: Duration::ZERO,
            waiting_since: None,
            received: 0,
            has_begun: false,
            idle: Box::pin(tokio::time::sleep(idle_timeout)),
        }
    }

    fn is_too_slow(&self) -> bool {
        let counted = self.waited.saturating_sub(self.idle_timeout);
        (self.received as f64) < counted.as_secs_f64() * MIN_BYTES_PER_SECOND
    }
}

impl Stream for TimedBody {
    type Item = Result<Bytes, axum::Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let timed_body = &mut *self;
        timed_body.has_begun = true;
        let waiting_since = timed_body.waiting_since.take();
        timed_body.waited += waiting_since.map_or(Duration::ZERO, |since| since.elapsed());
        let Some(body) = &mut timed_body.body else { return Poll::Ready(None) };
        match body.poll_next_unpin(context) {
            Poll::Ready(Some(Ok(bytes))) => {
                timed_body.received += bytes.len() as u64;
                if !timed_body.is_too_slow() {
                    return Poll::Ready(Some(Ok(bytes)));
                }
            }
            Poll::Ready(ended) => {
                timed_body.body = None;
                return Poll::Ready(ended);
            }
            Poll::Pending => {
                if waiting_since.is_none() {
                    timed_body.idle.as_mut().reset(Instant::now() + timed_body.idle_timeout);
                }
                if timed_body.idle.as_mut().poll(context).is_pending() {
                    timed_body.waiting_since = Some(Instant::now());
                    return Poll::Pending;
                }
            }
        }
        timed_body.body = None;
        Poll::Ready(Some(Err(axum::Error::new(BodyTimeout))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether a body arrives whole whose pieces come after these pauses.
    async fn is_whole(milliseconds: &[u64], piece: &'static [u8]) -> bool {
        let pauses = milliseconds.to_vec();
        let pieces = futures_util::stream::iter(pauses).then(move |pause| async move {
            tokio::time::sleep(Duration::from_millis(pause)).await;
            Ok::<_, std::io::Error>(Bytes::from_static(piece))
        });
        let mut timed_body = TimedBody::new(Body::from_stream(pieces), Duration::from_secs(2));
        loop {
            match timed_body.next().await {
                Some(Ok(_piece)) => {}
                Some(Err(_timeout)) => return false,
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
