//! The accept loop. It limits the number of connections ([`super::connections`]) and the time for a
//! request's header. At a shutdown it lets running requests end.
//!
//! `axum::serve` is not used because it installs no timer, without which the header timeout never fires.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::response::Response;
use hyper::Request;
use hyper::body::Incoming;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use super::connections::{Connection, Connections, NoRoom};
use super::held_body::hold;
use super::keep_alive::{CountedStream, HEADER_TIMEOUT};

/// Time that running requests have to end after the shutdown began.
const GRACE: Duration = Duration::from_secs(15);

/// Pause after the listener failed, for example because no file descriptor was free.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);

/// Longest time for the reply to a connection that is not admitted.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(1);

/// The reply to a connection whose address has too many.
const TOO_MANY: &str = "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\n\
    retry-after: 1\r\nconnection: close\r\n\r\n{\"error\":{\"message\":\"your address has as many \
    connections as it may have, each with a request: try again when one has been answered\",\
    \"type\":\"server_error\",\"param\":null,\"code\":null}}";

/// Serves `router` until `shutdown`, then lets running requests end.
pub async fn serve(listener: TcpListener, router: Router, shutdown: CancellationToken) {
    let connections = Arc::new(Connections::default());
    let graceful = GracefulShutdown::new();
    // HTTP/1 alone: to tell the versions apart, the builder would wait for a connection's first bytes
    // without any timeout.
    let builder = Builder::new(TokioExecutor::new()).http1_only();
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = accept(&listener, &connections) => accepted,
        };
        let Some((stream, connection)) = accepted else { continue };
        let (routes, connection) = (TowerToHyperService::new(router.clone()), Arc::new(connection));
        let running = Arc::clone(&connection);
        let service =
            service_fn(move |request| answer(routes.clone(), Arc::clone(&running), request));
        let (stream, timer) = CountedStream::new(stream);
        let mut builder = builder.clone();
        builder.http1().timer(timer).header_read_timeout(HEADER_TIMEOUT);
        let served = builder.serve_connection(TokioIo::new(stream), service);
        let served = graceful.watch(served.into_owned());
        tokio::spawn(async move {
            tokio::select! {
                // It rests, so nothing is cut off.
                () = connection.closed() => {}
                ended = served => if let Err(error) = ended {
                    tracing::debug!(%error, "a connection ended early");
                },
            }
        });
    }
    drop(listener);
    if tokio::time::timeout(GRACE, graceful.shutdown()).await.is_err() {
        tracing::warn!("some requests did not end in time and are cut off");
    }
}

/// The connection was closed before its request was read.
#[derive(Debug, thiserror::Error)]
#[error("the connection is being closed")]
struct Closing;

/// Answers a request. The connection does not rest until the reply is sent.
async fn answer(
    routes: TowerToHyperService<Router>,
    connection: Arc<Connection>,
    request: Request<Incoming>,
) -> Result<Response, Closing> {
    let running = connection.begin().ok_or(Closing)?;
    let response: Result<Response, Infallible> = routes.call(request).await;
    let response = response.unwrap_or_else(|never| match never {});
    Ok(hold(response, running))
}

/// The next connection that is admitted. Waits while every connection has a request.
async fn accept(
    listener: &TcpListener,
    connections: &Arc<Connections>,
) -> Option<(TcpStream, Connection)> {
    let (stream, address): (TcpStream, SocketAddr) = match listener.accept().await {
        Ok(accepted) => accepted,
        Err(error) => {
            tracing::warn!(%error, "a connection could not be accepted");
            // There may be no file descriptor for it.
            connections.close_one();
            tokio::time::sleep(ACCEPT_BACKOFF).await;
            return None;
        }
    };
    // Small replies go out at once; a stream that refuses the option still works.
    let _ = stream.set_nodelay(true);
    loop {
        let change = connections.change();
        match connections.admit(address.ip()) {
            Ok(connection) => return Some((stream, connection)),
            Err(NoRoom::OfAddress) => {
                tokio::spawn(refuse(stream));
                return None;
            }
            Err(NoRoom::AtAll) => change.await,
        }
    }
}

/// Says why the connection is closed.
async fn refuse(mut stream: TcpStream) {
    let said = async {
        stream.write_all(TOO_MANY.as_bytes()).await?;
        stream.shutdown().await
    };
    // The client may have gone.
    let _ = tokio::time::timeout(REFUSAL_TIMEOUT, said).await;
}
