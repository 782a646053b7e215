//! How long a connection may be silent: a request's head must come quickly, the next request need not.
//!
//! hyper has one limit for both, which begins when a connection waits for a request. Clients keep
//! connections for the next one and send it when they like; a server that closes one just then loses
//! the request. So [`HeadTimer`] lets a connection rest as long as nothing comes; [`Counted`] counts
//! what does.

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

/// Time in which a request's head must be there: since its first byte, and since a connection's begin
/// for its first request.
pub(in crate::http) const HEAD: Duration = Duration::from_secs(10);

/// How long a connection may rest between two requests: longer than clients keep one themselves (90 s
/// in Go and reqwest, 15 s in aiohttp, 5 s in httpx), so that it is they who close it.
const REST: Duration = Duration::from_secs(100);

/// A stream whose received bytes are counted.
pub(in crate::http) struct Counted {
    stream: TcpStream,
    received: Arc<AtomicU64>,
}

/// Of one connection.
pub(in crate::http) struct HeadTimer {
    received: Arc<AtomicU64>,
    head: Duration,
    rest: Duration,
}

impl Counted {
    /// The stream, and the timer for its connection.
    pub(in crate::http) fn new(stream: TcpStream) -> (Self, HeadTimer) {
        let received = Arc::new(AtomicU64::new(0));
        let timer = HeadTimer { received: received.clone(), head: HEAD, rest: REST };
        (Self { stream, received }, timer)
    }
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        let count = buffer.filled().len() - before;
        self.received.fetch_add(count as u64, Ordering::Relaxed);
        read
    }
}

impl AsyncWrite for Counted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
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
        Pin::new(&mut self.stream).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

impl Timer for HeadTimer {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Sleep>> {
        self.sleep_until(Instant::now() + duration)
    }

    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn Sleep>> {
        let received = self.received.load(Ordering::Relaxed);
        let rest = if received == 0 { Duration::ZERO } else { self.rest.saturating_sub(self.head) };
        Box::pin(HeadSleep {
            sleep: Box::pin(tokio::time::sleep_until((deadline + rest).into())),
            received: self.received.clone(),
            head: self.head,
            at_rest: (received > 0).then_some(received),
        })
    }
}

/// Until a head is overdue. hyper asks whenever something has come that is no whole head yet.
struct HeadSleep {
    sleep: Pin<Box<tokio::time::Sleep>>,
    received: Arc<AtomicU64>,
    head: Duration,
    /// What had been received when the connection began to rest, as long as it rests. The beginning of a
    /// head that came together with the request before is in it, and so may rest as well.
    at_rest: Option<u64>,
}

impl Future for HeadSleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let received = self.received.load(Ordering::Relaxed);
        if self.at_rest.is_some_and(|at_rest| at_rest != received) {
            self.at_rest = None;
            let deadline = tokio::time::Instant::now() + self.head;
            self.sleep.as_mut().reset(deadline);
        }
        self.sleep.as_mut().poll(context)
    }
}

impl Sleep for HeadSleep {}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: Duration = Duration::from_millis(100);
    const REST: Duration = Duration::from_millis(1500);

    fn timer(received: u64) -> HeadTimer {
        HeadTimer { received: Arc::new(AtomicU64::new(received)), head: HEAD, rest: REST }
    }

    #[tokio::test]
    async fn the_first_head_has_little_time_and_a_rest_much_but_not_for_ever() {
        for (received, limit) in [(0, HEAD), (5, REST)] {
            let began = Instant::now();
            timer(received).sleep(HEAD).await;
            assert!(began.elapsed() >= limit, "{received}: {:?}", began.elapsed());
            assert!(began.elapsed() < limit + REST / 2, "{received}: {:?}", began.elapsed());
        }
    }

    #[tokio::test]
    async fn a_head_that_begins_after_a_rest_has_its_own_time_from_then_on() {
        let timer = timer(5);
        let mut sleep = timer.sleep(HEAD);
        assert!(tokio::time::timeout(HEAD * 3, &mut sleep).await.is_err(), "it rests");
        let began = Instant::now();
        timer.received.fetch_add(1, Ordering::Relaxed);
        sleep.await;
        assert!(began.elapsed() >= HEAD, "{:?}", began.elapsed());
        assert!(began.elapsed() < REST / 2, "{:?}", began.elapsed());
    }
}
