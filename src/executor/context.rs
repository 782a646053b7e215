//! What every part of the executor works with.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::base_models::SharedCatalog;
use crate::blobs::Blobs;
use crate::config::Priority;
use crate::device::Device;
use crate::queue::Queue;
use crate::serve::{ServingLoad, ServingMemory};
use crate::store::Store;
use crate::util::clock::Clock;

/// How long a trainer may take to end; one that takes longer is killed.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// After a cancel was sent.
    pub cancel: Duration,
    /// After a stop was sent for a shutdown: it writes a checkpoint first.
    pub stop: Duration,
    /// After a stop was sent for a pause, which leaves it the time that a long step takes.
    pub pause: Duration,
    /// After its last message.
    pub exit: Duration,
    /// After it has said nothing: a trainer that lives says so every second.
    pub silence: Duration,
    /// After its run has not moved while it does steps; longer where its own pace is slower.
    pub stuck: Duration,
    /// The same before its first step and after its last one.
    pub stuck_outside: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            cancel: Duration::from_secs(10),
            stop: Duration::from_secs(20),
            pause: Duration::from_secs(600),
            exit: Duration::from_secs(10),
            silence: Duration::from_secs(120),
            stuck: Duration::from_secs(600),
            stuck_outside: Duration::from_secs(6 * 3600),
        }
    }
}

/// What an executor works with.
#[derive(Clone)]
pub struct ExecutorContext {
    /// Holds jobs and their progress.
    pub store: Arc<dyn Store>,
    /// Which job is next; shared with those who announce jobs and control requests.
    pub queue: Arc<Queue>,
    /// Where data comes from and results go to.
    pub blobs: Blobs,
    /// Where base models are found.
    pub base_models: Arc<SharedCatalog>,
    /// For times of files, models and checkpoints.
    pub clock: Arc<dyn Clock>,
    /// The folder of work in progress: one sub-folder for each job, removed when it has ended.
    pub work_dir: PathBuf,
    /// The binary whose command `trainer` trains: this one.
    pub trainer_binary: PathBuf,
    /// What it trains on.
    pub device: Device,
    /// How long a trainer may take to end.
    pub timeouts: Timeouts,
    /// Which goes first, serving or training.
    pub priority: Priority,
    /// The serving load to which a job yields between micro-batches.
    pub yields_to: Option<ServingLoad>,
    /// The models that answer beside it, which make room for a job that waits for memory.
    pub serving_memory: Option<ServingMemory>,
    /// How long a job waits for what others hold (memory, room on the disk, file descriptors) before it
    /// fails.
    pub resource_wait: Duration,
}
