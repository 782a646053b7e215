//! The thread that runs the models: receives requests, has them prepared and runs the scheduler step by
//! step.
//!
//! Started by [`super::ModelServer`]. It is a standard thread: a step computes for a long time and must not
//! block the async threads.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::model_cache::ModelCache;
use super::request_preparer::{PreparedRequest, QueuedRequest, RequestPreparer};
use super::scheduler::{KvCacheMemory, Scheduler};
use super::serving_load::ServingLoad;
use super::statistics::Statistics;
use crate::domain::project::Project;

/// Requests that are prepared, or wait for the device, at once. The first one of a project is always
/// prepared.
const MAX_PREPARED: usize = 256;

/// What the thread shares with other threads.
pub(super) struct ThreadContext {
    pub models: Arc<ModelCache>,
    pub serving_load: ServingLoad,
    pub statistics: Arc<Statistics>,
}

/// Serves `inbox` until it closes. `runtime` runs the futures that fetch models.
pub(super) fn run(
    inbox: mpsc::UnboundedReceiver<QueuedRequest>,
    runtime: &Handle,
    context: &ThreadContext,
) {
    let ThreadContext { models, serving_load, statistics } = context;
    let (done, prepared) = mpsc::unbounded_channel();
    let preparer =
        RequestPreparer::new(Arc::clone(models), runtime.clone(), done, Arc::clone(statistics));
    let scheduler = Scheduler::new(Arc::clone(statistics));
    let mut thread = InferenceThread {
        inbox,
        queued: VecDeque::new(),
        prepared,
        preparer,
        scheduler,
        preparing: HashMap::new(),
        is_open: true,
    };
    let cache_bytes = || models.cache_bytes();
    loop {
        if thread.scheduler.is_idle() {
            if thread.preparing.is_empty() && thread.queued.is_empty() {
                serving_load.set(false);
                if !thread.is_open {
                    return;
                }
            }
            // Nothing to compute: wait for the next message.
            let message = runtime.block_on(thread.next_message());
            thread.handle(message);
            serving_load.set(!thread.preparing.is_empty() || !thread.scheduler.is_idle());
        }
        thread.receive_all();
        if !thread.scheduler.is_idle() {
            let began = Instant::now();
            let memory = KvCacheMemory { limit: models.cache_limit(), used: &cache_bytes };
            thread.scheduler.step(&memory);
            statistics.count_busy_time(began.elapsed());
        }
        let memory = KvCacheMemory { limit: models.cache_limit(), used: &cache_bytes };
        thread.scheduler.trim_prefix_cache(&memory);
        let (count, bytes) = models.usage();
        statistics.set_memory(count, bytes, models.cache_bytes());
    }
}

/// The state of the thread.
struct InferenceThread {
    inbox: mpsc::UnboundedReceiver<QueuedRequest>,
    /// Requests whose preparation has not begun, in order of arrival.
    queued: VecDeque<QueuedRequest>,
    /// Requests whose preparation has ended.
    prepared: mpsc::UnboundedReceiver<PreparedRequest>,
    preparer: RequestPreparer,
    scheduler: Scheduler,
    /// How many requests of each project are being prepared.
    preparing: HashMap<Project, usize>,
    /// Whether more requests may come.
    is_open: bool,
}

/// What the thread receives.
enum ThreadMessage {
    Request(Box<QueuedRequest>),
    /// A preparation has ended.
    Prepared(PreparedRequest),
    /// No more requests will come.
    Closed,
}

impl InferenceThread {
    /// Waits for a request or the end of a preparation.
    async fn next_message(&mut self) -> ThreadMessage {
        tokio::select! {
            queued = self.inbox.recv(), if self.is_open => match queued {
                Some(queued) => ThreadMessage::Request(Box::new(queued)),
                None => ThreadMessage::Closed,
            },
            Some(prepared) = self.prepared.recv() => ThreadMessage::Prepared(prepared),
        }
    }

    /// Handles the messages that are there already.
    fn receive_all(&mut self) {
        while let Ok(prepared) = self.prepared.try_recv() {
            self.handle(ThreadMessage::Prepared(prepared));
        }
        while let Ok(queued) = self.inbox.try_recv() {
            self.queued.push_back(queued);
        }
        self.start_queued();
    }

    /// Starts to prepare requests, those of the project with the fewest first.
    fn start_queued(&mut self) {
        loop {
            let under_way = |queued: &QueuedRequest| {
                let project = &queued.tenant.project;
                let preparing = self.preparing.get(project).copied().unwrap_or_default();
                preparing + self.scheduler.waiting_of(project)
            };
            let counts = self.queued.iter().map(under_way).enumerate();
            let Some((index, count)) = counts.min_by_key(|(_, count)| *count) else { return };
            let total = self.preparing.values().sum::<usize>() + self.scheduler.waiting();
            if total >= MAX_PREPARED && count > 0 {
                return;
            }
            let Some(queued) = self.queued.remove(index) else { return };
            *self.preparing.entry(queued.tenant.project.clone()).or_default() += 1;
            self.preparer.start(queued);
        }
    }

    fn handle(&mut self, message: ThreadMessage) {
        match message {
            ThreadMessage::Request(queued) => {
                self.queued.push_back(*queued);
                self.start_queued();
            }
            ThreadMessage::Prepared(PreparedRequest { project, groups }) => {
                if let Some(count) = self.preparing.get_mut(&project) {
                    *count -= 1;
                    if *count == 0 {
                        self.preparing.remove(&project);
                    }
                }
                self.scheduler.enqueue(groups);
            }
            ThreadMessage::Closed => self.is_open = false,
        }
    }
}
