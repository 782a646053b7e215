//! Header timeout and keep-alive timeout of a connection.
//!
//! hyper has one timeout for both, which begins when a connection waits for a request. A request's header
//! must come quickly, while an idle connection may wait for its next request: a server that closes one at
//! the moment in which the client reuses it loses the request. [`KeepAliveTimer`] extends the timeout as
//! long as no byte comes. [`CountedStream`] counts the bytes.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use hyper::rt::{Sleep, Timer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// Time in which a request's header must be complete. It begins with the header's first byte, for a
/// connection's first request with the connection.
pub(in crate::http) const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a connection may be idle between two requests. Clients close an idle connection sooner (after
/// 90 s in Go and reqwest, 15 s in aiohttp, 5 s in httpx), so that the server hardly ever does.
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(100);

/// How long a client may read nothing of a reply that is waiting for it. Then the connection is closed: there
/// is a limited number of them.
const UNREAD_TIMEOUT: Duration = Duration::from_secs(120);

/// How a client begins that speaks HTTP/2 without asking.
const HTTP_2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n";

/// The reply to it, in frames of HTTP/2: no settings, and the end of the connection with the code
/// HTTP_1_1_REQUIRED and a text.
const HTTP_1_1_REQUIRED: &[u8] = b"\0\0\0\x04\0\0\0\0\0\
    \0\0\x28\x07\0\0\0\0\0\0\0\0\0\0\0\0\x0dhone speaks HTTP/1.1: ask for it";

/// A stream whose received bytes are counted, and which ends when its client does not read.
pub(in crate::http) struct CountedStream {
    stream: TcpStream,
    /// Fires when the client has read nothing for too long; `None` while it reads.
    unread: Option<Pin<Box<tokio::time::Sleep>>>,
    received: Arc<AtomicU64>,
}

/// The timer of one connection, which hyper uses for its header timeout.
pub(in crate::http) struct KeepAliveTimer {
    received: Arc<AtomicU64>,
    header_timeout: Duration,
    keep_alive_timeout: Duration,
}

impl CountedStream {
    /// The stream, and the timer for its connection.
    pub(in crate::http) fn new(stream: TcpStream) -> (Self, KeepAliveTimer) {
        let received = Arc::new(AtomicU64::new(0));
        let timer = KeepAliveTimer {
            received: received.clone(),
            header_timeout: HEADER_TIMEOUT,
            keep_alive_timeout: KEEP_ALIVE_TIMEOUT,
        };
        (Self { stream, unread: None, received }, timer)
    }
}

impl CountedStream {
    /// Passes the result of a write on; an error when the client has read nothing for too long.
    fn unless_unread(
        &mut self,
        context: &mut Context<'_>,
        written: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if written.is_ready() {
            self.unread = None;
            return written;
        }
        let new_sleep = || Box::pin(tokio::time::sleep(UNREAD_TIMEOUT));
        let unread = self.unread.get_or_insert_with(new_sleep);
        match unread.as_mut().poll(context) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(()) => {
                let message = "the client does not read its reply";
                Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, message)))
            }
        }
    }
}

impl AsyncRead for CountedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        let count = buffer.filled().len() - before;
        let before_all = self.received.fetch_add(count as u64, Ordering::Relaxed);
        if before_all == 0 && buffer.filled()[before..].starts_with(HTTP_2_PREFACE) {
            tracing::debug!("a client speaks HTTP/2");
            // A few bytes into an empty buffer. hyper refuses the preface by closing the connection.
            let _ = self.stream.try_write(HTTP_1_1_REQUIRED);
        }
        read
    }
}

impl AsyncWrite for CountedStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.unless_unread(context, written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, parts);
        self.unless_unread(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

impl Timer for KeepAliveTimer {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Sleep>> {
        self.sleep_until(Instant::now() + duration)
    }

    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn Sleep>> {
        let received = self.received.load(Ordering::Relaxed);
        let extra = if received == 0 {
            Duration::ZERO
        } else {
            self.keep_alive_timeout.saturating_sub(self.header_timeout)
        };
        Box::pin(KeepAliveSleep {
            sleep: Box::pin(tokio::time::sleep_until((deadline + extra).into())),
            received: self.received.clone(),
            header_timeout: self.header_timeout,
            idle_at: (received > 0).then_some(received),
        })
    }
}

/// Ends when a header is overdue. hyper polls it whenever bytes have come that do not complete the header.
struct KeepAliveSleep {
    sleep: Pin<Box<tokio::time::Sleep>>,
    received: Arc<AtomicU64>,
    header_timeout: Duration,
    /// Bytes received when the connection became idle, as long as it is idle. The beginning of a header
    /// that came together with the request before counts as received, and so may be idle too.
    idle_at: Option<u64>,
}

impl Future for KeepAliveSleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let received = self.received.load(Ordering::Relaxed);
        if self.idle_at.is_some_and(|idle_at| idle_at != received) {
            self.idle_at = None;
            let deadline = tokio::time::Instant::now() + self.header_timeout;
            self.sleep.as_mut().reset(deadline);
        }
        self.sleep.as_mut().poll(context)
    }
}

impl Sleep for KeepAliveSleep {}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER_TIMEOUT: Duration = Duration::from_millis(100);
    const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_millis(1500);

    fn timer(received: u64) -> KeepAliveTimer {
        KeepAliveTimer {
            received: Arc::new(AtomicU64::new(received)),
            header_timeout: HEADER_TIMEOUT,
            keep_alive_timeout: KEEP_ALIVE_TIMEOUT,
        }
    }

    #[tokio::test]
    async fn the_first_head_has_little_time_and_a_rest_much_but_not_for_ever() {
        for (received, limit) in [(0, HEADER_TIMEOUT), (5, KEEP_ALIVE_TIMEOUT)] {
            let began = Instant::now();
            timer(received).sleep(HEADER_TIMEOUT).await;
            assert!(began.elapsed() >= limit, "{received}: {:?}", began.elapsed());
            assert!(
                began.elapsed() < limit + KEEP_ALIVE_TIMEOUT / 2,
                "{received}: {:?}",
                began.elapsed()
            );
        }
    }

    #[tokio::test]
    async fn a_head_that_begins_after_a_rest_has_its_own_time_from_then_on() {
        let timer = timer(5);
        let mut sleep = timer.sleep(HEADER_TIMEOUT);
        assert!(tokio::time::timeout(HEADER_TIMEOUT * 3, &mut sleep).await.is_err(), "it rests");
        let began = Instant::now();
        timer.received.fetch_add(1, Ordering::Relaxed);
        sleep.await;
        assert!(began.elapsed() >= HEADER_TIMEOUT, "{:?}", began.elapsed());
        assert!(began.elapsed() < KEEP_ALIVE_TIMEOUT / 2, "{:?}", began.elapsed());
    }
}
