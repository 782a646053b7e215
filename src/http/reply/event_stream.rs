//! Replies of server-sent events.

use std::convert::Infallible;
use std::time::Duration;

use axum::http::{HeaderName, HeaderValue};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream;

/// After how much silence a comment is sent, so that no proxy closes the connection as idle.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// The events of a reply. The stream is dropped when the client disconnects.
pub(in crate::http) trait EventStream: Send + 'static {
    /// Text of the comment that is sent while there is no event.
    const HEARTBEAT_TEXT: &'static str;

    /// The next event; `None` ends the reply.
    fn next(&mut self) -> impl Future<Output = Option<Event>> + Send;
}

/// Sends the events as they come.
pub(in crate::http) fn event_stream<E: EventStream>(events: E) -> Response {
    let keep_alive = KeepAlive::new().interval(HEARTBEAT).text(E::HEARTBEAT_TEXT);
    let events = stream::unfold(events, |mut events| async move {
        let event = events.next().await?;
        Some((Ok::<Event, Infallible>(event), events))
    });
    let mut response = Sse::new(events).keep_alive(keep_alive).into_response();
    // A proxy that buffers replies would delay the events.
    let buffering = HeaderName::from_static("x-accel-buffering");
    response.headers_mut().insert(buffering, HeaderValue::from_static("no"));
    response
}
