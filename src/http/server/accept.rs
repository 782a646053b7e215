//! The accept loop. It limits the number of connections and the time for a request's header. At a
//! shutdown it lets running requests end.
//!
//! `axum::serve` is not used because it installs no timer, without which the header timeout never fires.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::keep_alive::{CountedStream, HEADER_TIMEOUT};

/// Connections at once; further ones wait in the listener's backlog.
const MAX_CONNECTIONS: usize = 1024;

/// Time that running requests have to end after the shutdown began.
const GRACE: Duration = Duration::from_secs(15);

/// Pause after the listener failed, for example because no file descriptor was free.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);

/// Serves `router` until `shutdown`, then lets running requests end.
pub async fn serve(listener: TcpListener, router: Router, shutdown: CancellationToken) {
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let graceful = GracefulShutdown::new();
    // HTTP/1 alone: to tell the versions apart, the builder would wait for a connection's first bytes
    // without any timeout.
    let builder = Builder::new(TokioExecutor::new()).http1_only();
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = accept(&listener, &permits) => accepted,
        };
        let Some((stream, permit)) = accepted else {
            tokio::time::sleep(ACCEPT_BACKOFF).await;
            continue;
        };
        let service = TowerToHyperService::new(router.clone());
        let (stream, timer) = CountedStream::new(stream);
        let mut builder = builder.clone();
        builder.http1().timer(timer).header_read_timeout(HEADER_TIMEOUT);
        let connection = builder.serve_connection(TokioIo::new(stream), service);
        let connection = graceful.watch(connection.into_owned());
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection ended early");
            }
            drop(permit);
        });
    }
    drop(listener);
    if tokio::time::timeout(GRACE, graceful.shutdown()).await.is_err() {
        tracing::warn!("some requests did not end in time and are cut off");
    }
}

/// The next connection, as soon as the limit allows one.
async fn accept(
    listener: &TcpListener,
    permits: &Arc<Semaphore>,
) -> Option<(tokio::net::TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let permit = Arc::clone(permits).acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, _)) => {
            // Small replies go out at once; a stream that refuses the option still works.
            let _ = stream.set_nodelay(true);
            Some((stream, permit))
        }
        Err(error) => {
            tracing::warn!(%error, "a connection could not be accepted");
            None
        }
    }
}
