//! A job's events as server-sent events, from the first one or after the last one that the client has seen,
//! until the job has ended.

use std::collections::VecDeque;
use std::time::Duration;

use axum::response::Response;
use axum::response::sse::Event;

use super::object::EventObject;
use crate::domain::job::JobEvent;
use crate::http::error::{ApiError, ApiResult};
use crate::http::middleware::authenticate::Caller;
use crate::http::reply::event_stream::{EventStream, event_stream};
use crate::http::state::AppState;
use crate::store::{PageRequest, StoreError};

/// How often the store is polled for new events.
const POLL_INTERVAL: Duration = Duration::from_millis(250);

/// Most events that are read at once.
const BATCH_SIZE: u32 = 100;

/// Streams the events of a job, all of them or those after the event `after`. Fails before the reply begins
/// when there is no such event.
pub(super) async fn stream_events(
    state: AppState,
    caller: Caller,
    job_id: String,
    after: Option<String>,
) -> Result<Response, StoreError> {
    let (unsent, stage) = (VecDeque::new(), StreamStage::Following);
    let mut events = JobEventStream { state, caller, job_id, after, unsent, stage };
    events.read_batch().await?;
    Ok(event_stream(events))
}

/// The stage of a stream.
enum StreamStage {
    /// There may be more events.
    Following,
    /// The job has ended, and every event of it has been sent.
    Complete,
    /// The stream is closed.
    Closed,
}

/// The stream of one job's events.
struct JobEventStream {
    state: AppState,
    caller: Caller,
    job_id: String,
    /// The last event that was read.
    after: Option<String>,
    unsent: VecDeque<JobEvent>,
    stage: StreamStage,
}

impl EventStream for JobEventStream {
    const HEARTBEAT_TEXT: &'static str = "the job goes on";

    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.unsent.pop_front() {
                return Some(server_sent_event(event));
            }
            match self.stage {
                StreamStage::Following => {}
                StreamStage::Complete => {
                    self.stage = StreamStage::Closed;
                    return Some(Event::default().data("[DONE]"));
                }
                StreamStage::Closed => return None,
            }
            // Checked before the read, so that events from before the shutdown are still sent.
            let is_shutting_down = self.state.shutdown.is_cancelled();
            if let Err(error) = self.check_key_and_read().await {
                self.stage = StreamStage::Closed;
                return Some(Event::default().data(error.into_json()));
            }
            if !self.unsent.is_empty() || !matches!(self.stage, StreamStage::Following) {
                continue;
            }
            if is_shutting_down {
                self.stage = StreamStage::Closed;
                return Some(Event::default().comment("the server is shutting down"));
            }
            self.state.shutdown.run_until_cancelled(tokio::time::sleep(POLL_INTERVAL)).await;
        }
    }
}

impl JobEventStream {
    /// Reads the next batch, unless the caller's key was revoked meanwhile.
    async fn check_key_and_read(&mut self) -> ApiResult<()> {
        self.caller.check_key(&self.state).await?;
        Ok(self.read_batch().await?)
    }

    /// Reads the events after the last one that was read.
    async fn read_batch(&mut self) -> Result<(), StoreError> {
        // The job is read before its events: the last events become visible together with its end.
        let job = self.state.store.job(&self.job_id).await?;
        let page = PageRequest { after: self.after.clone(), limit: BATCH_SIZE };
        let events = self.state.store.follow_events(&self.job_id, &page).await?;
        let has_ended = job.is_none_or(|job| job.status.is_terminal());
        if has_ended && !events.has_more {
            self.stage = StreamStage::Complete;
        }
        if let Some(last) = events.items.last() {
            self.after = Some(last.id.clone());
        }
        self.unsent.extend(events.items);
        Ok(())
    }
}

/// An event with its id. A client that reconnects sends the id of the last event it has seen.
fn server_sent_event(event: JobEvent) -> Event {
    let id = event.id.clone();
    let event_object = EventObject::from(&event);
    match serde_json::to_string(&event_object) {
        Ok(json) => Event::default().id(id).data(json),
        Err(error) => Event::default().data(ApiError::internal(error).into_json()),
    }
}
