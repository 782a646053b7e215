//! A job's events as they come: server-sent events, from the first one or from after the last one
//! that the client has seen, until the job has ended.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use axum::http::{HeaderName, HeaderValue};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream;

use super::object::EventObject;
use crate::domain::job::JobEvent;
use crate::http::error::{ApiError, ApiResult};
use crate::http::middleware::authenticate::Caller;
use crate::http::state::AppState;
use crate::store::{PageRequest, StoreError};

/// How often new events are looked for.
const LOOK: Duration = Duration::from_millis(250);

/// After how much silence a comment is sent, so that nobody on the way takes the connection for dead.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// Most events that are read at once.
const AT_ONCE: u32 = 100;

/// Streams the events of a job, those after the event `after` alone if there is one. Fails before
/// anything is sent when the cursor names nothing.
pub(super) async fn follow(
    state: AppState,
    caller: Caller,
    job_id: String,
    after: Option<String>,
) -> Result<Response, StoreError> {
    let (unsent, stage) = (VecDeque::new(), Stage::Following);
    let mut follower = Follower { state, caller, job_id, after, unsent, stage };
    follower.look().await?;
    let events = stream::unfold(follower, |mut follower| async move {
        let event = follower.next().await?;
        Some((Ok::<Event, Infallible>(event), follower))
    });
    let keep_alive = KeepAlive::new().interval(HEARTBEAT).text("the job goes on");
    let mut response = Sse::new(events).keep_alive(keep_alive).into_response();
    // A proxy that collects a reply before it passes it on would hold the events back.
    let buffering = HeaderName::from_static("x-accel-buffering");
    response.headers_mut().insert(buffering, HeaderValue::from_static("no"));
    Ok(response)
}

/// How far a stream is.
enum Stage {
    /// There may be more events.
    Following,
    /// The job has ended, and every event of it has been sent.
    Complete,
    /// Nothing more is sent.
    Closed,
}

/// Follows one job.
struct Follower {
    state: AppState,
    caller: Caller,
    job_id: String,
    /// The last event that was read.
    after: Option<String>,
    unsent: VecDeque<JobEvent>,
    stage: Stage,
}

impl Follower {
    /// The next event to send, as soon as there is one; `None` closes the stream.
    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.unsent.pop_front() {
                return Some(as_sent(event));
            }
            match self.stage {
                Stage::Following => {}
                Stage::Complete => {
                    self.stage = Stage::Closed;
                    return Some(Event::default().data("[DONE]"));
                }
                Stage::Closed => return None,
            }
            // Asked before the look, so that what was written before the shutdown is still sent.
            let is_shutting_down = self.state.shutdown.is_cancelled();
            if let Err(error) = self.look_again().await {
                self.stage = Stage::Closed;
                return Some(Event::default().data(error.into_json()));
            }
            if !self.unsent.is_empty() || !matches!(self.stage, Stage::Following) {
                continue;
            }
            if is_shutting_down {
                self.stage = Stage::Closed;
                return Some(Event::default().comment("the server is shutting down"));
            }
            self.state.shutdown.run_until_cancelled(tokio::time::sleep(LOOK)).await;
        }
    }

    /// Looks, unless the caller's key was revoked meanwhile.
    async fn look_again(&mut self) -> ApiResult<()> {
        self.caller.may_stay(&self.state).await?;
        Ok(self.look().await?)
    }

    /// Reads what has come since the last look.
    async fn look(&mut self) -> Result<(), StoreError> {
        // The job before its events: the last ones become visible together with its end.
        let job = self.state.store.job(&self.job_id).await?;
        let page = PageRequest { after: self.after.clone(), limit: AT_ONCE };
        let events = self.state.store.follow_events(&self.job_id, &page).await?;
        let has_ended = job.is_none_or(|job| job.status.is_terminal());
        if has_ended && !events.has_more {
            self.stage = Stage::Complete;
        }
        if let Some(last) = events.items.last() {
            self.after = Some(last.id.clone());
        }
        self.unsent.extend(events.items);
        Ok(())
    }
}

/// An event with its id, which a client that comes again names as the last one it has seen.
fn as_sent(event: JobEvent) -> Event {
    let id = event.id.clone();
    let event_object = EventObject::from(&event);
    match serde_json::to_string(&event_object) {
        Ok(json) => Event::default().id(id).data(json),
        Err(error) => Event::default().data(ApiError::internal(error).into_json()),
    }
}
