//! From a queued request to its sequences: loads the model, attaches the adapter, tokenizes the prompts.
//!
//! Each request is prepared on a thread of its own, so that sequences of other models run meanwhile.

use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::error::ServeError;
use super::events::{Event, EventSender};
use super::loaded_model::{LoadedModel, NamedAdapter};
use super::model_cache::ModelCache;
use super::request::Request;
use super::request_encoder::RequestEncoder;
use super::sequence_group::SequenceGroup;
use super::sequence_output::SequenceOutput;
use super::source::ModelSource;
use super::statistics::Statistics;
use super::tenant::Tenant;
use super::waiting_requests::WaitingPlace;
use crate::domain::project::Project;

/// A request in the queue, with the sender of its events.
pub(super) struct QueuedRequest {
    pub tenant: Arc<Tenant>,
    /// Its place among those that wait, until its sequences run.
    pub place: Arc<WaitingPlace>,
    pub source: ModelSource,
    pub request: Request,
    pub events: EventSender,
}

/// Prepares requests, several at once.
pub(super) struct RequestPreparer {
    models: Arc<ModelCache>,
    runtime: Handle,
    done: mpsc::UnboundedSender<PreparedRequest>,
    statistics: Arc<Statistics>,
}

/// A request whose preparation has ended.
pub(super) struct PreparedRequest {
    pub project: Project,
    /// Its sequences; none when it cannot be answered.
    pub groups: Vec<SequenceGroup>,
}

impl RequestPreparer {
    /// Sends the sequences of each request to `done`: none when the request cannot be answered, which its
    /// client is told here.
    pub fn new(
        models: Arc<ModelCache>,
        runtime: Handle,
        done: mpsc::UnboundedSender<PreparedRequest>,
        statistics: Arc<Statistics>,
    ) -> Self {
        Self { models, runtime, done, statistics }
    }

    /// Starts to prepare a request.
    pub fn start(&self, queued: QueuedRequest) {
        let QueuedRequest { tenant, place, source, request, events } = queued;
        let (models, runtime) = (Arc::clone(&self.models), self.runtime.clone());
        let (done, statistics) = (self.done.clone(), Arc::clone(&self.statistics));
        statistics.count_request();
        self.runtime.spawn_blocking(move || {
            let project = tenant.project.clone();
            let prepared = PreparedRequest { project, groups: Vec::new() };
            let mut report = PreparationReport { done, prepared: Some(prepared) };
            if !events.is_connected() {
                return;
            }
            match prepare(&models, &runtime, source, request, &events) {
                Ok(prepared) => report.set_groups(prepared, &tenant, &place),
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
    done: mpsc::UnboundedSender<PreparedRequest>,
    /// `Some` until it is sent.
    prepared: Option<PreparedRequest>,
}

impl PreparationReport {
    fn set_groups(
        &mut self,
        prompts: PreparedPrompts,
        tenant: &Arc<Tenant>,
        place: &Arc<WaitingPlace>,
    ) {
        let PreparedPrompts { model, adapter, prompts } = prompts;
        let groups = prompts.into_iter().map(|outputs| SequenceGroup {
            model: Arc::clone(&model),
            adapter: adapter.clone(),
            tenant: Arc::clone(tenant),
            place: Arc::clone(place),
            outputs,
        });
        if let Some(prepared) = &mut self.prepared {
            prepared.groups = groups.collect();
        }
    }
}

impl Drop for PreparationReport {
    fn drop(&mut self) {
        if let Some(prepared) = self.prepared.take() {
            let _thread_has_ended = self.done.send(prepared);
        }
    }
}

/// The outputs of each prompt of a request, and the model that computes them.
struct PreparedPrompts {
    model: Arc<LoadedModel>,
    adapter: Option<NamedAdapter>,
    prompts: Vec<Vec<SequenceOutput>>,
}

fn prepare(
    models: &ModelCache,
    runtime: &Handle,
    source: ModelSource,
    request: Request,
    events: &EventSender,
) -> Result<PreparedPrompts, ServeError> {
    let model = models.find_or_load(source.base, runtime)?;
    let adapter = match source.adapter {
        Some(adapter) => Some(model.attach(adapter, runtime)?),
        None => None,
    };
    let prompts = RequestEncoder::new(&model, adapter.as_ref()).encode(request, events)?;
    Ok(PreparedPrompts { model, adapter, prompts })
}
