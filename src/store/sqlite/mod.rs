//! The store on SQLite: one file in the data folder, one writer, a few readers.
//!
//! [`open`] locks the data folder, checks the library's version and brings the schema up to date;
//! [`open_beside_a_server`] is for commands that work while a server has the folder.
//! Each file beside this one holds the SQL of one noun. Writers share a single connection, one after the
//! other ([`SqliteStore::write`], with `BEGIN IMMEDIATE`), and readers see the last commit (WAL), so no
//! caller ever finds the database locked.

mod api_keys;
mod checkpoints;
mod cursor;
mod events;
mod files;
mod health;
mod idempotency_keys;
mod jobs;
mod models;
mod open;
mod permissions;
mod progress;
mod queue;
mod read_cache;
mod reserve;
mod rows;
mod uploads;
mod webhook_outbox;
mod webhooks;
mod write;

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use sqlx::SqlitePool;

use files::FileFilter;
use health::LastProof;
pub use open::{DATABASE_FILE, LOCK_FILE, open, open_beside_a_server};
use read_cache::{CommitCounter, ReadCache};
use reserve::Reserve;

use super::{
    AddPartOutcome, CachedReply, CancelOutcome, CancelUploadOutcome, Claim, CompleteUploadOutcome,
    DeleteFileOutcome, DeleteModelOutcome, HeartbeatReply, IdempotencyKey, MetadataFilter,
    NewCheckpoint, Order, Page, PageRequest, PauseOutcome, ReplayedRequest, ResumeOutcome, Store,
    StoreError, Success,
};
use crate::domain::api_key::{ApiKey, KeyDigest};
use crate::domain::file::{FilePurpose, FileRecord};
use crate::domain::job::{
    Job, JobCheckpoint, JobError, JobEvent, NewEvent, ResolvedHyperparameters, StepMetrics,
};
use crate::domain::model::{CheckpointPermission, TunedModel};
use crate::domain::project::Project;
use crate::domain::upload::{Upload, UploadPart};
use crate::util::clock::Clock;

/// A page of events: its job, cursor and limit.
type EventsKey = (String, Option<String>, u32);

/// The store on SQLite. Holds the data folder's lock for as long as it lives.
pub struct SqliteStore {
    /// The only connection that writes.
    writer: SqlitePool,
    /// Connections that only read.
    readers: SqlitePool,
    clock: Arc<dyn Clock>,
    data_dir: PathBuf,
    /// Room for what must be written on a full disk.
    reserve: Reserve,
    last_proof: LastProof,
    commits: CommitCounter,
    /// By id.
    job_cache: ReadCache<String, Arc<CachedReply<Job>>>,
    event_cache: ReadCache<EventsKey, Arc<CachedReply<Page<JobEvent>>>>,
    /// By digest.
    api_key_cache: ReadCache<KeyDigest, ApiKey>,
    /// Whether there are API keys.
    has_keys_cache: ReadCache<(), bool>,
    /// Locked, unless a server beside this process has the folder; the lock goes when the file is
    /// closed.
    lock: Option<File>,
}

impl SqliteStore {
    /// Waits for running statements and closes every connection; SQLite then folds its log into
    /// the database file. For a clean end: a store that is merely dropped is just as durable.
    pub async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
    }
}

#[async_trait]
impl Store for SqliteStore {
    async fn insert_file(&self, file: &FileRecord) -> Result<(), StoreError> {
        self.write(async |tx, _now| files::insert(tx, file).await).await
    }

    async fn file(&self, id: &str) -> Result<Option<FileRecord>, StoreError> {
        files::by_id(&mut *self.readers.acquire().await?, id, self.clock.now()).await
    }

    async fn list_files(
        &self,
        project: &Project,
        purpose: Option<FilePurpose>,
        order: Order,
        page: &PageRequest,
    ) -> Result<Page<FileRecord>, StoreError> {
        let reader = &mut *self.readers.acquire().await?;
        let filter = FileFilter { project, purpose, now: self.clock.now() };
        files::list(reader, &filter, order, page).await
    }

    async fn delete_file(&self, id: &str) -> Result<DeleteFileOutcome, StoreError> {
        self.write_from_reserve(async |tx, now| files::delete(tx, id, now).await).await
    }

    async fn remove_expired_files(&self) -> Result<Vec<String>, StoreError> {
        self.write_from_reserve(async |tx, now| files::remove_expired(tx, now).await).await
    }

    async fn blob_keys(&self) -> Result<Vec<String>, StoreError> {
        files::blob_keys(&mut *self.readers.acquire().await?).await
    }

    async fn insert_upload(&self, upload: &Upload) -> Result<(), StoreError> {
        self.write(async |tx, _now| uploads::insert(tx, upload).await).await
    }

    async fn upload(&self, id: &str) -> Result<Option<Upload>, StoreError> {
        uploads::by_id(&mut *self.readers.acquire().await?, id, self.clock.now()).await
    }

    async fn add_part(&self, part: &UploadPart) -> Result<Option<AddPartOutcome>, StoreError> {
        self.write(async |tx, now| uploads::add_part(tx, part, now).await).await
    }

    async fn upload_parts(&self, upload_id: &str) -> Result<Vec<UploadPart>, StoreError> {
        uploads::parts(&mut *self.readers.acquire().await?, upload_id).await
    }

    async fn complete_upload(
        &self,
        id: &str,
        part_ids: &[String],
        file: &FileRecord,
    ) -> Result<Option<CompleteUploadOutcome>, StoreError> {
        self.write(async |tx, _now| uploads::complete(tx, id, part_ids, file).await).await
    }

    async fn cancel_upload(&self, id: &str) -> Result<Option<CancelUploadOutcome>, StoreError> {
        self.write_from_reserve(async |tx, now| uploads::cancel(tx, id, now).await).await
    }

    async fn expire_uploads(&self, grace_seconds: i64) -> Result<Vec<String>, StoreError> {
        self.write_from_reserve(async |tx, now| {
            let since = now.saturating_sub(grace_seconds);
            uploads::expire(tx, since).await
        })
        .await
    }

    async fn insert_job(
        &self,
        job: &Job,
        events: &[NewEvent],
        most_waiting: u32,
    ) -> Result<(), StoreError> {
        self.write(async |tx, now| {
            jobs::insert(tx, job, most_waiting, now).await?;
            events::append(tx, &job.id, now, events).await
        })
        .await
    }

    async fn earlier_request(
        &self,
        request: &IdempotencyKey,
    ) -> Result<Option<ReplayedRequest>, StoreError> {
        idempotency_keys::find(&mut *self.readers.acquire().await?, request).await
    }

    async fn insert_job_once(
        &self,
        job: &Job,
        events: &[NewEvent],
        request: &IdempotencyKey,
        most_waiting: u32,
    ) -> Result<Option<ReplayedRequest>, StoreError> {
        self.write(async |tx, now| {
            if let Some(earlier) = idempotency_keys::find(tx, request).await? {
                return Ok(Some(earlier));
            }
            jobs::insert(tx, job, most_waiting, now).await?;
            idempotency_keys::insert(tx, request, &job.id, now).await?;
            events::append(tx, &job.id, now, events).await?;
            Ok(None)
        })
        .await
    }

    async fn job(&self, id: &str) -> Result<Option<Arc<CachedReply<Job>>>, StoreError> {
        let now = self.commits.now();
        if let Some(job) = self.job_cache.get(id, now) {
            return Ok(Some(job));
        }
        let job = jobs::by_id(&mut *self.readers.acquire().await?, id).await?;
        let job = job.map(|job| Arc::new(CachedReply::new(job)));
        if let Some(job) = &job {
            self.job_cache.insert(id.to_owned(), now, Arc::clone(job));
        }
        Ok(job)
    }

    async fn list_jobs(
        &self,
        project: &Project,
        metadata: &MetadataFilter,
        page: &PageRequest,
    ) -> Result<Page<Job>, StoreError> {
        jobs::list(&mut *self.readers.acquire().await?, project, metadata, page).await
    }

    async fn request_cancel(&self, id: &str) -> Result<Option<CancelOutcome>, StoreError> {
        self.write_from_reserve(async |tx, now| jobs::request_cancel(tx, id, now).await).await
    }

    async fn request_pause(
        &self,
        id: &str,
        events: &[NewEvent],
    ) -> Result<Option<PauseOutcome>, StoreError> {
        self.write(async |tx, now| jobs::request_pause(tx, id, now, events).await).await
    }

    async fn resume(
        &self,
        id: &str,
        events: &[NewEvent],
    ) -> Result<Option<ResumeOutcome>, StoreError> {
        self.write(async |tx, now| jobs::resume(tx, id, now, events).await).await
    }

    async fn list_events(
        &self,
        job_id: &str,
        page: &PageRequest,
    ) -> Result<Arc<CachedReply<Page<JobEvent>>>, StoreError> {
        let now = self.commits.now();
        let key = (job_id.to_owned(), page.after.clone(), page.limit);
        if let Some(events) = self.event_cache.get(&key, now) {
            return Ok(events);
        }
        let reader = &mut *self.readers.acquire().await?;
        let events = events::list(reader, job_id, Order::Descending, page).await?;
        let events = Arc::new(CachedReply::new(events));
        self.event_cache.insert(key, now, Arc::clone(&events));
        Ok(events)
    }

    async fn follow_events(
        &self,
        job_id: &str,
        page: &PageRequest,
    ) -> Result<Page<JobEvent>, StoreError> {
        let reader = &mut *self.readers.acquire().await?;
        events::list(reader, job_id, Order::Ascending, page).await
    }

    async fn list_metrics(
        &self,
        job_id: &str,
        after: u64,
        limit: u32,
    ) -> Result<Page<JobEvent>, StoreError> {
        events::metrics(&mut *self.readers.acquire().await?, job_id, after, limit).await
    }

    async fn list_checkpoints(
        &self,
        job_id: &str,
        page: &PageRequest,
    ) -> Result<Page<JobCheckpoint>, StoreError> {
        checkpoints::list(&mut *self.readers.acquire().await?, job_id, page).await
    }

    async fn model(&self, id: &str) -> Result<Option<TunedModel>, StoreError> {
        models::by_id(&mut *self.readers.acquire().await?, id).await
    }

    async fn list_models(&self, project: &Project) -> Result<Vec<TunedModel>, StoreError> {
        models::list(&mut *self.readers.acquire().await?, project).await
    }

    async fn delete_model(&self, id: &str) -> Result<DeleteModelOutcome, StoreError> {
        self.write_from_reserve(async |tx, _now| models::delete(tx, id).await).await
    }

    async fn grant_permissions(
        &self,
        checkpoint: &str,
        projects: &[Project],
    ) -> Result<Option<Vec<CheckpointPermission>>, StoreError> {
        self.write(async |tx, now| permissions::grant(tx, checkpoint, projects, now).await).await
    }

    async fn list_permissions(
        &self,
        checkpoint: &str,
        project: Option<&str>,
        order: Order,
        page: &PageRequest,
    ) -> Result<Page<CheckpointPermission>, StoreError> {
        let reader = &mut *self.readers.acquire().await?;
        permissions::list(reader, checkpoint, project, order, page).await
    }

    async fn delete_permission(&self, checkpoint: &str, id: &str) -> Result<bool, StoreError> {
        self.write_from_reserve(async |tx, _now| permissions::delete(tx, checkpoint, id).await)
            .await
    }

    async fn is_permitted(&self, checkpoint: &str, project: &Project) -> Result<bool, StoreError> {
        permissions::is_permitted(&mut *self.readers.acquire().await?, checkpoint, project).await
    }

    async fn requeue_orphans(&self, events: &[NewEvent]) -> Result<Vec<String>, StoreError> {
        self.write_from_reserve(async |tx, now| queue::requeue_orphans(tx, now, events).await).await
    }

    async fn claim(
        &self,
        owner: &str,
        lease_seconds: i64,
    ) -> Result<Option<(Claim, Job)>, StoreError> {
        self.write(async |tx, now| queue::claim(tx, owner, now, lease_seconds).await).await
    }

    async fn heartbeat(
        &self,
        claim: &Claim,
        lease_seconds: i64,
    ) -> Result<HeartbeatReply, StoreError> {
        self.write(async |tx, now| {
            let until = now.saturating_add(lease_seconds);
            queue::heartbeat(tx, claim, until).await
        })
        .await
    }

    async fn release(&self, claim: &Claim, events: &[NewEvent]) -> Result<(), StoreError> {
        self.write_from_reserve(async |tx, now| {
            events::append(tx, &claim.job_id, now, events).await?;
            queue::give_back(tx, claim, queue::AttemptCount::NotCounted, now).await?;
            Ok(())
        })
        .await
    }

    async fn retry(&self, claim: &Claim, events: &[NewEvent]) -> Result<(), StoreError> {
        self.write_from_reserve(async |tx, now| {
            events::append(tx, &claim.job_id, now, events).await?;
            queue::give_back(tx, claim, queue::AttemptCount::Counted, now).await?;
            Ok(())
        })
        .await
    }

    async fn postpone(
        &self,
        claim: &Claim,
        seconds: i64,
        events: &[NewEvent],
    ) -> Result<(), StoreError> {
        self.write_from_reserve(async |tx, now| {
            events::append(tx, &claim.job_id, now, events).await?;
            queue::give_back(tx, claim, queue::AttemptCount::NotCounted, now).await?;
            queue::postpone(tx, &claim.job_id, now, seconds).await
        })
        .await
    }

    async fn append_events(&self, claim: &Claim, events: &[NewEvent]) -> Result<(), StoreError> {
        self.write(async |tx, now| {
            queue::check_claim(tx, claim).await?;
            events::append(tx, &claim.job_id, now, events).await
        })
        .await
    }

    async fn record_resolved(
        &self,
        claim: &Claim,
        resolved: &ResolvedHyperparameters,
        total_steps: u64,
        events: &[NewEvent],
    ) -> Result<(), StoreError> {
        self.write(async |tx, now| {
            progress::resolved(tx, claim, resolved, total_steps).await?;
            events::append(tx, &claim.job_id, now, events).await
        })
        .await
    }

    async fn record_progress(
        &self,
        claim: &Claim,
        metrics: &StepMetrics,
        estimated_finish: Option<i64>,
        events: &[NewEvent],
    ) -> Result<(), StoreError> {
        self.write(async |tx, now| {
            progress::step(tx, claim, metrics.step, estimated_finish).await?;
            events::append(tx, &claim.job_id, now, events).await
        })
        .await
    }

    async fn add_checkpoint(
        &self,
        claim: &Claim,
        checkpoint: &NewCheckpoint<'_>,
    ) -> Result<bool, StoreError> {
        let NewCheckpoint { checkpoint, model, files, events } = *checkpoint;
        self.write(async |tx, now| {
            queue::check_claim(tx, claim).await?;
            let step = checkpoint.step;
            if checkpoints::has_been(tx, &claim.job_id, step).await? {
                return Ok(false);
            }
            for file in files {
                files::insert(tx, file).await?;
            }
            models::insert(tx, model).await?;
            checkpoints::insert(tx, checkpoint).await?;
            events::append(tx, &claim.job_id, now, events).await?;
            Ok(true)
        })
        .await
    }

    async fn retain_checkpoints(
        &self,
        claim: &Claim,
        retained: &[u64],
        through: u64,
    ) -> Result<Vec<String>, StoreError> {
        self.write_from_reserve(async |tx, now| {
            queue::check_claim(tx, claim).await?;
            let mut blob_keys = Vec::new();
            for checkpoint in checkpoints::up_to(tx, &claim.job_id, through).await? {
                if !retained.contains(&checkpoint.step) {
                    blob_keys.extend(checkpoints::remove(tx, &checkpoint, now).await?);
                }
            }
            Ok(blob_keys)
        })
        .await
    }

    async fn finish_succeeded(&self, claim: &Claim, success: &Success) -> Result<(), StoreError> {
        self.write_from_reserve(async |tx, now| {
            progress::succeeded(tx, claim, success, now).await?;
            for file in &success.files {
                files::insert(tx, file).await?;
            }
            models::insert(tx, &success.model).await?;
            events::append(tx, &claim.job_id, now, &success.events).await
        })
        .await
    }

    async fn finish_failed(
        &self,
        claim: &Claim,
        error: &JobError,
        events: &[NewEvent],
    ) -> Result<(), StoreError> {
        self.write_from_reserve(async |tx, now| {
            progress::failed(tx, claim, error, now).await?;
            events::append(tx, &claim.job_id, now, events).await
        })
        .await
    }

    async fn finish_cancelled(&self, claim: &Claim) -> Result<(), StoreError> {
        self.write_from_reserve(async |tx, now| progress::cancelled(tx, claim, now).await).await
    }

    async fn ping(&self) -> Result<(), StoreError> {
        sqlx::query("SELECT 1").execute(&self.readers).await?;
        self.prove_writable().await
    }
}
