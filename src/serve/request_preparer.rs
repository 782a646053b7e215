//! From a queued request to its sequences: loads the model, attaches the adapter, tokenizes the prompts.
//!
//! Each request is prepared on a thread of its own, so that sequences of other models run meanwhile.

use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::error::ServeError;
use super::events::{Event, EventSender};
use super::model_cache::ModelCache;
use super::request::Request;
use super::request_encoder::RequestEncoder;
use super::sequence_group::SequenceGroup;
use super::source::ModelSource;
use super::statistics::Statistics;
use super::tenant::Tenant;

/// A request in the queue, with the sender of its events.
pub(super) struct QueuedRequest {
    pub tenant: Arc<Tenant>,
    pub source: ModelSource,
    pub request: Request,
    pub events: EventSender,
}

/// Prepares requests, several at once.
pub(super) struct RequestPreparer {
    models: Arc<ModelCache>,
    runtime: Handle,
    done: mpsc::UnboundedSender<Vec<SequenceGroup>>,
    statistics: Arc<Statistics>,
}

impl RequestPreparer {
    /// Sends the sequences of each request to `done`: none when the request cannot be answered, which its
    /// client is told here.
    pub fn new(
        models: Arc<ModelCache>,
        runtime: Handle,
        done: mpsc::UnboundedSender<Vec<SequenceGroup>>,
        statistics: Arc<Statistics>,
    ) -> Self {
        Self { models, runtime, done, statistics }
    }

    /// Starts to prepare a request.
    pub fn start(&self, queued: QueuedRequest) {
        let QueuedRequest { tenant, source, request, events } = queued;
        let (models, runtime) = (Arc::clone(&self.models), self.runtime.clone());
        let (done, statistics) = (self.done.clone(), Arc::clone(&self.statistics));
        statistics.count_request();
        self.runtime.spawn_blocking(move || {
            let mut report = PreparationReport { done, groups: Vec::new() };
            if !events.is_connected() {
                return;
            }
            match prepare(&models, &runtime, &tenant, source, request, &events) {
                Ok(groups) => report.groups = groups,
                Err(error) => {
                    statistics.count_failed_request();
                    events.send(Event::Failed(error));
                }
            }
        });
    }
}

/// Reports the end of a preparation when it is dropped. So a preparation that panics is reported too, and
/// its request does not count as being prepared for ever.
struct PreparationReport {
    done: mpsc::UnboundedSender<Vec<SequenceGroup>>,
    groups: Vec<SequenceGroup>,
}

impl Drop for PreparationReport {
    fn drop(&mut self) {
        let _thread_has_ended = self.done.send(std::mem::take(&mut self.groups));
    }
}

fn prepare(
    models: &ModelCache,
    runtime: &Handle,
    tenant: &Arc<Tenant>,
    source: ModelSource,
    request: Request,
    events: &EventSender,
) -> Result<Vec<SequenceGroup>, ServeError> {
    let model = models.find_or_load(source.base, runtime)?;
    let adapter = match source.adapter {
        Some(adapter) => Some(model.attach(adapter, runtime)?),
        None => None,
    };
    let prompts = RequestEncoder::new(&model, adapter.as_ref()).encode(request, events)?;
    let groups = prompts.into_iter().map(|outputs| SequenceGroup {
        model: Arc::clone(&model),
        adapter: adapter.clone(),
        tenant: Arc::clone(tenant),
        outputs,
    });
    Ok(groups.collect())
}
