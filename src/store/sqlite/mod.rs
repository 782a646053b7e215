//! The store on SQLite: one file in the data folder, one writer, a few readers.
//!
//! [`open`] locks the data folder, checks the library's version and brings the schema up to date;
//! [`open_beside_a_server`] is for commands that work while a server has the folder.
//! Each file beside this one holds the SQL of one noun. Writers take turns on a single connection
//! and begin with `BEGIN IMMEDIATE`, readers see the last commit (WAL), so nobody is ever told
//! that the database is locked.

mod api_keys;
mod checkpoints;
mod cursor;
mod events;
mod files;
mod idempotency_keys;
mod jobs;
mod models;
mod open;
mod permissions;
mod progress;
mod queue;
mod read_cache;
mod rows;
mod uploads;
mod webhooks;
mod write;

use std::fs::File;
use std::sync::Arc;

use async_trait::async_trait;
use sqlx::SqlitePool;

pub use open::{DATABASE_FILE, LOCK_FILE, open, open_beside_a_server};
use read_cache::{Commits, ReadCache};
use write::WriteTransaction;

use super::{
    AddPartOutcome, CachedReply, CancelOutcome, CancelUploadOutcome, Claim, CompleteUploadOutcome,
    DeleteFileOutcome, DeleteModelOutcome, HeartbeatReply, IdempotencyKey, MetadataFilter, Order,
    Page, PageRequest, PauseOutcome, ReplayedRequest, ResumeOutcome, Store, StoreError, Success,
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
    commits: Commits,
    /// By id.
    recent_jobs: ReadCache<String, Arc<CachedReply<Job>>>,
    recent_events: ReadCache<EventsKey, Arc<CachedReply<Page<JobEvent>>>>,
    /// By digest.
    recent_api_keys: ReadCache<KeyDigest, ApiKey>,
    /// Whether there are API keys.
    recent_are_keys: ReadCache<(), bool>,
    /// Locked, unless a server beside this process has the folder; the lock goes when the file is
    /// closed.
    lock: Option<File>,
}

impl SqliteStore {
    /// Begins a transaction that may write.
    async fn begin_write(&self) -> Result<WriteTransaction, StoreError> {
        WriteTransaction::begin(&self.writer, &self.commits).await
    }

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
        let mut transaction = self.begin_write().await?;
        files::insert(&mut transaction, file).await?;
        Ok(transaction.commit().await?)
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
        files::list(reader, project, purpose, order, page, self.clock.now()).await
    }

    async fn delete_file(&self, id: &str) -> Result<DeleteFileOutcome, StoreError> {
        let mut transaction = self.begin_write().await?;
        let outcome = files::delete(&mut transaction, id, self.clock.now()).await?;
        transaction.commit().await?;
        Ok(outcome)
    }

    async fn remove_expired_files(&self) -> Result<Vec<String>, StoreError> {
        let mut transaction = self.begin_write().await?;
        let keys = files::remove_expired(&mut transaction, self.clock.now()).await?;
        transaction.commit().await?;
        Ok(keys)
    }

    async fn blob_keys(&self) -> Result<Vec<String>, StoreError> {
        files::blob_keys(&mut *self.readers.acquire().await?).await
    }

    async fn insert_upload(&self, upload: &Upload) -> Result<(), StoreError> {
        let mut transaction = self.begin_write().await?;
        uploads::insert(&mut transaction, upload).await?;
        Ok(transaction.commit().await?)
    }

    async fn upload(&self, id: &str) -> Result<Option<Upload>, StoreError> {
        uploads::by_id(&mut *self.readers.acquire().await?, id, self.clock.now()).await
    }

    async fn add_part(&self, part: &UploadPart) -> Result<Option<AddPartOutcome>, StoreError> {
        let mut transaction = self.begin_write().await?;
        let outcome = uploads::add_part(&mut transaction, part, self.clock.now()).await?;
        transaction.commit().await?;
        Ok(outcome)
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
        let mut transaction = self.begin_write().await?;
        let outcome = uploads::complete(&mut transaction, id, part_ids, file).await?;
        transaction.commit().await?;
        Ok(outcome)
    }

    async fn cancel_upload(&self, id: &str) -> Result<Option<CancelUploadOutcome>, StoreError> {
        let mut transaction = self.begin_write().await?;
        let outcome = uploads::cancel(&mut transaction, id, self.clock.now()).await?;
        transaction.commit().await?;
        Ok(outcome)
    }

    async fn expire_uploads(&self, grace_seconds: i64) -> Result<Vec<String>, StoreError> {
        let mut transaction = self.begin_write().await?;
        let since = self.clock.now().saturating_sub(grace_seconds);
        let unneeded = uploads::expire(&mut transaction, since).await?;
        transaction.commit().await?;
        Ok(unneeded)
    }

    async fn insert_job(
        &self,
        job: &Job,
        events: &[NewEvent],
        most_waiting: u32,
    ) -> Result<(), StoreError> {
        let mut transaction = self.begin_write().await?;
        let now = self.clock.now();
        jobs::insert(&mut transaction, job, most_waiting, now).await?;
        events::append(&mut transaction, &job.id, now, events).await?;
        Ok(transaction.commit().await?)
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
        let mut transaction = self.begin_write().await?;
        if let Some(earlier) = idempotency_keys::find(&mut transaction, request).await? {
            return Ok(Some(earlier));
        }
        let now = self.clock.now();
        jobs::insert(&mut transaction, job, most_waiting, now).await?;
        idempotency_keys::insert(&mut transaction, request, &job.id, now).await?;
        events::append(&mut transaction, &job.id, now, events).await?;
        transaction.commit().await?;
        Ok(None)
    }

    async fn job(&self, id: &str) -> Result<Option<Arc<CachedReply<Job>>>, StoreError> {
        let now = self.commits.now();
        if let Some(job) = self.recent_jobs.get(id, now) {
            return Ok(Some(job));
        }
        let job = jobs::by_id(&mut *self.readers.acquire().await?, id).await?;
        let job = job.map(|job| Arc::new(CachedReply::new(job)));
        if let Some(job) = &job {
            self.recent_jobs.keep(id.to_owned(), now, Arc::clone(job));
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
        let mut transaction = self.begin_write().await?;
        let outcome = jobs::request_cancel(&mut transaction, id, self.clock.now()).await?;
        transaction.commit().await?;
        Ok(outcome)
    }

    async fn request_pause(
        &self,
        id: &str,
        events: &[NewEvent],
    ) -> Result<Option<PauseOutcome>, StoreError> {
        let mut transaction = self.begin_write().await?;
        let outcome = jobs::request_pause(&mut transaction, id, self.clock.now(), events).await?;
        transaction.commit().await?;
        Ok(outcome)
    }

    async fn resume(
        &self,
        id: &str,
        events: &[NewEvent],
    ) -> Result<Option<ResumeOutcome>, StoreError> {
        let mut transaction = self.begin_write().await?;
        let outcome = jobs::resume(&mut transaction, id, self.clock.now(), events).await?;
        transaction.commit().await?;
        Ok(outcome)
    }

    async fn list_events(
        &self,
        job_id: &str,
        page: &PageRequest,
    ) -> Result<Arc<CachedReply<Page<JobEvent>>>, StoreError> {
        let now = self.commits.now();
        let key = (job_id.to_owned(), page.after.clone(), page.limit);
        if let Some(events) = self.recent_events.get(&key, now) {
            return Ok(events);
        }
        let reader = &mut *self.readers.acquire().await?;
        let events = events::list(reader, job_id, Order::Descending, page).await?;
        let events = Arc::new(CachedReply::new(events));
        self.recent_events.keep(key, now, Arc::clone(&events));
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
        let mut transaction = self.begin_write().await?;
        let outcome = models::delete(&mut transaction, id).await?;
        transaction.commit().await?;
        Ok(outcome)
    }

    async fn grant_permissions(
        &self,
        checkpoint: &str,
        projects: &[Project],
    ) -> Result<Option<Vec<CheckpointPermission>>, StoreError> {
        let mut transaction = self.begin_write().await?;
        let now = self.clock.now();
        let granted = permissions::grant(&mut transaction, checkpoint, projects, now).await?;
        transaction.commit().await?;
        Ok(granted)
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
        let mut transaction = self.begin_write().await?;
        let is_deleted = permissions::delete(&mut transaction, checkpoint, id).await?;
        transaction.commit().await?;
        Ok(is_deleted)
    }

    async fn is_permitted(&self, checkpoint: &str, project: &Project) -> Result<bool, StoreError> {
        permissions::is_permitted(&mut *self.readers.acquire().await?, checkpoint, project).await
    }

    async fn requeue_orphans(&self, events: &[NewEvent]) -> Result<Vec<String>, StoreError> {
        let mut transaction = self.begin_write().await?;
        let ids = queue::requeue_orphans(&mut transaction, self.clock.now(), events).await?;
        transaction.commit().await?;
        Ok(ids)
    }

    async fn claim(
        &self,
        owner: &str,
        lease_seconds: i64,
    ) -> Result<Option<(Claim, Job)>, StoreError> {
        let mut transaction = self.begin_write().await?;
        let claimed =
            queue::claim(&mut transaction, owner, self.clock.now(), lease_seconds).await?;
        transaction.commit().await?;
        Ok(claimed)
    }

    async fn heartbeat(
        &self,
        claim: &Claim,
        lease_seconds: i64,
    ) -> Result<HeartbeatReply, StoreError> {
        let mut transaction = self.begin_write().await?;
        let until = self.clock.now().saturating_add(lease_seconds);
        let reply = queue::heartbeat(&mut transaction, claim, until).await?;
        transaction.commit().await?;
        Ok(reply)
    }

    async fn release(&self, claim: &Claim, events: &[NewEvent]) -> Result<(), StoreError> {
        let mut transaction = self.begin_write().await?;
        let now = self.clock.now();
        events::append(&mut transaction, &claim.job_id, now, events).await?;
        queue::give_back(&mut transaction, claim, queue::Attempt::IsForgiven, now).await?;
        Ok(transaction.commit().await?)
    }

    async fn retry(&self, claim: &Claim, events: &[NewEvent]) -> Result<(), StoreError> {
        let mut transaction = self.begin_write().await?;
        let now = self.clock.now();
        events::append(&mut transaction, &claim.job_id, now, events).await?;
        queue::give_back(&mut transaction, claim, queue::Attempt::Counts, now).await?;
        Ok(transaction.commit().await?)
    }

    async fn append_events(&self, claim: &Claim, events: &[NewEvent]) -> Result<(), StoreError> {
        let mut transaction = self.begin_write().await?;
        queue::check_claim(&mut transaction, claim).await?;
        events::append(&mut transaction, &claim.job_id, self.clock.now(), events).await?;
        Ok(transaction.commit().await?)
    }

    async fn record_resolved(
        &self,
        claim: &Claim,
        resolved: &ResolvedHyperparameters,
        total_steps: u64,
        events: &[NewEvent],
    ) -> Result<(), StoreError> {
        let mut transaction = self.begin_write().await?;
        progress::resolved(&mut transaction, claim, resolved, total_steps).await?;
        events::append(&mut transaction, &claim.job_id, self.clock.now(), events).await?;
        Ok(transaction.commit().await?)
    }

    async fn record_progress(
        &self,
        claim: &Claim,
        metrics: &StepMetrics,
        estimated_finish: Option<i64>,
        events: &[NewEvent],
    ) -> Result<(), StoreError> {
        let mut transaction = self.begin_write().await?;
        progress::step(&mut transaction, claim, metrics.step, estimated_finish).await?;
        events::append(&mut transaction, &claim.job_id, self.clock.now(), events).await?;
        Ok(transaction.commit().await?)
    }

    async fn add_checkpoint(
        &self,
        claim: &Claim,
        checkpoint: &JobCheckpoint,
        model: &TunedModel,
        files: &[FileRecord],
        events: &[NewEvent],
    ) -> Result<bool, StoreError> {
        let mut transaction = self.begin_write().await?;
        queue::check_claim(&mut transaction, claim).await?;
        let step = checkpoint.step;
        if checkpoints::by_step(&mut transaction, &claim.job_id, step).await?.is_some() {
            return Ok(false);
        }
        for file in files {
            files::insert(&mut transaction, file).await?;
        }
        models::insert(&mut transaction, model).await?;
        checkpoints::insert(&mut transaction, checkpoint).await?;
        events::append(&mut transaction, &claim.job_id, self.clock.now(), events).await?;
        transaction.commit().await?;
        Ok(true)
    }

    async fn remove_checkpoint(&self, claim: &Claim, step: u64) -> Result<Vec<String>, StoreError> {
        let mut transaction = self.begin_write().await?;
        queue::check_claim(&mut transaction, claim).await?;
        let checkpoint = checkpoints::by_step(&mut transaction, &claim.job_id, step).await?;
        let Some(checkpoint) = checkpoint else {
            return Ok(Vec::new());
        };
        match models::delete(&mut transaction, &checkpoint.model_name).await? {
            DeleteModelOutcome::Deleted => {}
            DeleteModelOutcome::UsedByJob(_) | DeleteModelOutcome::NotFound => {
                return Ok(Vec::new());
            }
        }
        let mut blob_keys = Vec::new();
        for id in &checkpoint.result_files {
            let outcome = files::delete(&mut transaction, id, self.clock.now()).await?;
            if let DeleteFileOutcome::Deleted(file) = outcome {
                blob_keys.push(file.blob_key);
            }
        }
        transaction.commit().await?;
        Ok(blob_keys)
    }

    async fn finish_succeeded(&self, claim: &Claim, success: &Success) -> Result<(), StoreError> {
        let mut transaction = self.begin_write().await?;
        let now = self.clock.now();
        progress::succeeded(&mut transaction, claim, success, now).await?;
        for file in &success.files {
            files::insert(&mut transaction, file).await?;
        }
        models::insert(&mut transaction, &success.model).await?;
        events::append(&mut transaction, &claim.job_id, now, &success.events).await?;
        Ok(transaction.commit().await?)
    }

    async fn finish_failed(
        &self,
        claim: &Claim,
        error: &JobError,
        events: &[NewEvent],
    ) -> Result<(), StoreError> {
        let mut transaction = self.begin_write().await?;
        let now = self.clock.now();
        progress::failed(&mut transaction, claim, error, now).await?;
        events::append(&mut transaction, &claim.job_id, now, events).await?;
        Ok(transaction.commit().await?)
    }

    async fn finish_cancelled(&self, claim: &Claim) -> Result<(), StoreError> {
        let mut transaction = self.begin_write().await?;
        progress::cancelled(&mut transaction, claim, self.clock.now()).await?;
        Ok(transaction.commit().await?)
    }

    async fn ping(&self) -> Result<(), StoreError> {
        sqlx::query("SELECT 1").execute(&self.readers).await?;
        Ok(())
    }
}
