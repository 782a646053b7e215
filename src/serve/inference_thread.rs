//! The thread that runs the models: receives requests, has them prepared and runs the scheduler step by
//! step.
//!
//! Started by [`super::ModelServer`]. It is a standard thread: a step computes for a long time and must not
//! block the async threads.

use std::sync::Arc;
use std::time::Instant;

use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::model_cache::ModelCache;
use super::request_preparer::{QueuedRequest, RequestPreparer};
use super::scheduler::{KvCacheMemory, Scheduler};
use super::sequence_group::SequenceGroup;
use super::serving_load::ServingLoad;
use super::statistics::Statistics;

/// Requests that may wait. Further requests are told to come back later.
pub(super) const MAX_WAITING_REQUESTS: usize = 256;

/// What the thread shares with other threads.
pub(super) struct ThreadContext {
    /// Bytes that models, adapters and key/value caches may take.
    pub memory: u64,
    pub serving_load: ServingLoad,
    pub statistics: Arc<Statistics>,
}

/// Serves `inbox` until it closes. `runtime` runs the futures that fetch models.
pub(super) fn run(inbox: mpsc::Receiver<QueuedRequest>, runtime: &Handle, context: &ThreadContext) {
    let ThreadContext { memory, serving_load, statistics } = context;
    let models = Arc::new(ModelCache::new(*memory));
    let (done, prepared) = mpsc::unbounded_channel();
    let preparer =
        RequestPreparer::new(Arc::clone(&models), runtime.clone(), done, Arc::clone(statistics));
    let scheduler = Scheduler::new(Arc::clone(statistics));
    let mut thread =
        InferenceThread { inbox, prepared, preparer, scheduler, preparing: 0, is_open: true };
    let cache_bytes = || models.cache_bytes();
    loop {
        if thread.scheduler.is_idle() {
            if thread.preparing == 0 {
                serving_load.set(false);
                if !thread.is_open {
                    return;
                }
            }
            // Nothing to compute: wait for the next message.
            let message = runtime.block_on(thread.next_message());
            thread.handle(message);
            serving_load.set(thread.preparing > 0 || !thread.scheduler.is_idle());
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
    inbox: mpsc::Receiver<QueuedRequest>,
    /// The sequences of requests whose preparation has ended.
    prepared: mpsc::UnboundedReceiver<Vec<SequenceGroup>>,
    preparer: RequestPreparer,
    scheduler: Scheduler,
    /// Requests that are being prepared.
    preparing: usize,
    /// Whether more requests may come.
    is_open: bool,
}

/// What the thread receives.
enum ThreadMessage {
    Request(Box<QueuedRequest>),
    /// A preparation has ended.
    Prepared(Vec<SequenceGroup>),
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
            Some(groups) = self.prepared.recv() => ThreadMessage::Prepared(groups),
        }
    }

    /// Handles the messages that are there already.
    fn receive_all(&mut self) {
        while self.preparing + self.scheduler.waiting() < MAX_WAITING_REQUESTS
            && let Ok(queued) = self.inbox.try_recv()
        {
            self.handle(ThreadMessage::Request(Box::new(queued)));
        }
        while let Ok(groups) = self.prepared.try_recv() {
            self.handle(ThreadMessage::Prepared(groups));
        }
    }

    fn handle(&mut self, message: ThreadMessage) {
        match message {
            ThreadMessage::Request(queued) => {
                self.preparing += 1;
                self.preparer.start(*queued);
            }
            ThreadMessage::Prepared(groups) => {
                self.preparing = self.preparing.saturating_sub(1);
                self.scheduler.enqueue(groups);
            }
            ThreadMessage::Closed => self.is_open = false,
        }
    }
}
