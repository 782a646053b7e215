//! What the executor's tests have in common: a whole data folder with an executor over it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hone::base_models::{Catalog, SharedCatalog};
use hone::blobs::{Blobs, upload_key};
use hone::config::{Priority, RESOURCE_WAIT};
use hone::device::Device;
use hone::domain::file::FilePurpose;
use hone::domain::job::{EventKind, Hyperparameters, Job, JobEvent, JobStatus};
use hone::executor::{Executor, ExecutorContext, Timeouts};
use hone::queue::Queue;
use hone::serve::ServingLoad;
use hone::store::{PageRequest, Store, sqlite};
use hone::util::clock::SystemClock;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::support::store::{ANY_NUMBER, file, job};

/// Longest time that a test waits for a job.
const PATIENCE: Duration = Duration::from_secs(120);

/// A data folder as a server has it.
pub struct Workshop {
    pub folder: tempfile::TempDir,
    pub store: Arc<dyn Store>,
    pub queue: Arc<Queue>,
    pub blobs: Blobs,
    pub timeouts: Timeouts,
    models_dir: PathBuf,
    pub trainer: PathBuf,
    pub device: Device,
    pub yields_to: Option<ServingLoad>,
    pub resource_wait: Duration,
}

/// An executor at work.
pub struct Running {
    shutdown: CancellationToken,
    task: JoinHandle<()>,
}

impl Workshop {
    /// A fresh data folder whose executor finds base models in `models_dir` and starts `trainer`.
    pub async fn new(models_dir: &Path, trainer: &Path) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let store = sqlite::open(folder.path(), Arc::new(SystemClock)).await.expect("opens");
        let store: Arc<dyn Store> = Arc::new(store);
        let queue = Arc::new(Queue::new(store.clone(), "tests".to_owned()));
        let blobs = Blobs::local(&folder.path().join("blobs")).expect("opens");
        Self {
            folder,
            store,
            queue,
            blobs,
            timeouts: Timeouts::default(),
            models_dir: models_dir.to_owned(),
            trainer: trainer.to_owned(),
            device: Device::Cpu,
            yields_to: None,
            resource_wait: RESOURCE_WAIT,
        }
    }

    /// Prepares an executor without running it.
    pub async fn prepare(&self) -> Executor {
        let prepared = Executor::prepare(ExecutorContext {
            store: self.store.clone(),
            queue: self.queue.clone(),
            blobs: self.blobs.clone(),
            base_models: Arc::new(SharedCatalog::new(Catalog::new(self.models_dir.clone()))),
            clock: Arc::new(SystemClock),
            work_dir: self.work_dir(),
            trainer_binary: self.trainer.clone(),
            device: self.device,
            timeouts: self.timeouts,
            priority: Priority::Serve,
            yields_to: self.yields_to.clone(),
            serving_memory: None,
            resource_wait: self.resource_wait,
        });
        prepared.await.expect("prepares")
    }

    /// Starts an executor.
    pub async fn start(&self) -> Running {
        let executor = self.prepare().await;
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(executor.run(shutdown.clone()));
        Running { shutdown, task }
    }

    /// The folder of work in progress.
    pub fn work_dir(&self) -> PathBuf {
        self.folder.path().join("work")
    }

    /// Uploads `content` and returns the file's id.
    pub async fn upload(&self, content: &str) -> String {
        let mut record = file(FilePurpose::FineTune);
        let local = self.blobs.spool_dir().join(&record.id);
        std::fs::write(&local, content).expect("writes");
        record.blob_key = upload_key(&record.id);
        let length = self.blobs.put_file(&record.blob_key, &local).await.expect("stores");
        record.bytes = i64::try_from(length).expect("a small file");
        self.store.insert_file(&record).await.expect("added");
        record.id
    }

    /// Creates a job over `training_file` and returns its id.
    pub async fn create(
        &self,
        model: &str,
        training_file: &str,
        hyperparameters: Hyperparameters,
    ) -> String {
        let mut job = job(training_file);
        job.model = model.to_owned();
        job.hyperparameters = hyperparameters;
        self.store.insert_job(&job, &[], ANY_NUMBER).await.expect("added");
        self.queue.announce_work();
        job.id
    }

    /// Waits until the job has ended.
    pub async fn ended(&self, id: &str) -> Job {
        self.until(id, |job| job.status.is_terminal()).await
    }

    /// Waits until the job is as wanted. A job that ends otherwise fails the test.
    pub async fn until(&self, id: &str, wanted: fn(&Job) -> bool) -> Job {
        let start = Instant::now();
        loop {
            let job = self.store.job(id).await.expect("reads").expect("the job is there");
            if wanted(&job) {
                return (*job).clone();
            }
            assert!(!job.status.is_terminal(), "ended: {:?} {:?}", job.status, job.error);
            assert!(start.elapsed() < PATIENCE, "still waiting: {job:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The job's events, oldest first.
    pub async fn events(&self, id: &str) -> Vec<JobEvent> {
        let request = PageRequest { after: None, limit: 10_000 };
        let page = self.store.list_events(id, &request).await.expect("lists");
        let mut events = page.items.clone();
        events.reverse();
        events
    }

    /// What people read of them, numbers left out.
    pub async fn messages(&self, id: &str) -> Vec<String> {
        let events = self.events(id).await.into_iter();
        events
            .filter(|event| event.event.kind == EventKind::Message)
            .map(|event| event.event.message)
            .collect()
    }
}

impl Running {
    /// Ends the executor as a server's shutdown does; returns how long that took.
    pub async fn shut_down(self) -> Duration {
        let start = Instant::now();
        self.shutdown.cancel();
        self.task.await.expect("the executor never panics");
        start.elapsed()
    }

    /// Ends the executor as the death of its server does: nothing more is written.
    pub async fn kill(self) {
        self.task.abort();
        assert!(self.task.await.is_err(), "the executor had ended by itself");
    }
}

/// Whether a job waits again.
pub fn waits(job: &Job) -> bool {
    job.status == JobStatus::Queued
}
