//! The thread that runs the models: takes requests in as they come and gives the device to texts, pass
//! by pass.
//!
//! Started by [`super::ModelServer`]. A standard thread, because a pass computes for a good while and
//! must not hold up the async threads.

use std::sync::Arc;
use std::time::Instant;

use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::bases::Bases;
use super::events::EventSender;
use super::prepare::{Prepared, Preparer};
use super::request::Request;
use super::schedule::Scheduler;
use super::serving_load::ServingLoad;
use super::statistics::Statistics;
use super::{ModelSource, WAITING_REQUESTS};

/// One request and who hears of its answers.
pub(super) struct Work {
    pub source: ModelSource,
    pub request: Request,
    pub events: EventSender,
}

/// What the thread shares with others.
pub(super) struct Shared {
    /// Bytes that models, adapters and caches may take.
    pub memory: u64,
    pub demand: ServingLoad,
    pub statistics: Arc<Statistics>,
}

/// Serves `inbox` until it closes. `runtime` runs the futures that fetch models.
pub(super) fn run(mut inbox: mpsc::Receiver<Work>, runtime: &Handle, shared: &Shared) {
    let Shared { memory, demand, statistics } = shared;
    let bases = Arc::new(Bases::new(*memory));
    let (done, mut prepared) = mpsc::unbounded_channel();
    let preparer = Preparer::new(Arc::clone(&bases), runtime.clone(), done, Arc::clone(statistics));
    let mut scheduler = Scheduler::new(Arc::clone(statistics));
    let mut preparing = 0_usize;
    let mut is_open = true;
    loop {
        if scheduler.is_idle() {
            if preparing == 0 {
                demand.set(false);
                if !is_open {
                    return;
                }
            }
            // Nothing to compute: wait for whatever comes first.
            let next = runtime.block_on(next(&mut inbox, &mut prepared, is_open));
            take_in(next, &preparer, &mut scheduler, &mut preparing, &mut is_open);
            demand.set(preparing > 0 || !scheduler.is_idle());
        }
        while preparing + scheduler.waiting() < WAITING_REQUESTS
            && let Ok(work) = inbox.try_recv()
        {
            take_in(
                Next::Work(Box::new(work)),
                &preparer,
                &mut scheduler,
                &mut preparing,
                &mut is_open,
            );
        }
        while let Ok(one) = prepared.try_recv() {
            take_in(Next::Prepared(one), &preparer, &mut scheduler, &mut preparing, &mut is_open);
        }
        if !scheduler.is_idle() {
            let began = Instant::now();
            let cached = || bases.cached_bytes();
            scheduler.pass(bases.memory_of_caches(), &cached);
            statistics.was_busy(began.elapsed());
        }
        scheduler.keep_within(bases.memory_of_caches(), || bases.cached_bytes());
        let (count, bytes) = bases.held();
        statistics.holds(count, bytes, bases.cached_bytes());
    }
}

/// What the thread hears.
enum Next {
    Work(Box<Work>),
    /// A preparation has ended.
    Prepared(Option<Prepared>),
    /// No more requests will come.
    Closed,
}

/// Waits for a request or the end of a preparation.
async fn next(
    inbox: &mut mpsc::Receiver<Work>,
    prepared: &mut mpsc::UnboundedReceiver<Option<Prepared>>,
    is_open: bool,
) -> Next {
    tokio::select! {
        work = inbox.recv(), if is_open => work.map_or(Next::Closed, |work| Next::Work(Box::new(work))),
        Some(one) = prepared.recv() => Next::Prepared(one),
    }
}

fn take_in(
    next: Next,
    preparer: &Preparer,
    scheduler: &mut Scheduler,
    preparing: &mut usize,
    is_open: &mut bool,
) {
    match next {
        Next::Work(work) => {
            *preparing += 1;
            preparer.start(*work);
        }
        Next::Prepared(one) => {
            *preparing = preparing.saturating_sub(1);
            if let Some(one) = one {
                scheduler.enqueue(one);
            }
        }
        Next::Closed => *is_open = false,
    }
}
