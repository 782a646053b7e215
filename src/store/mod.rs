//! Stage 3, the store: what the product remembers, behind one trait.
//!
//! SQLite implements it today; PostgreSQL can come later behind the same trait, so the SQL keeps
//! to TEXT ids, integer times, JSON as text and `$1` parameters. Every writing transaction begins
//! with `BEGIN IMMEDIATE`. A write that belongs to a claimed job carries its [`Claim`] and is
//! refused with [`StoreError::LostClaim`] when another executor holds the job by now.

mod api_keys;
mod cached_reply;
mod claim;
mod error;
mod idempotency_key;
mod outcomes;
mod page;
pub mod sqlite;
mod webhooks;

use std::sync::Arc;

use async_trait::async_trait;

pub use self::api_keys::{KeyStore, RevokeOutcome};
pub use self::cached_reply::CachedReply;
pub use self::claim::{Claim, HeartbeatReply, NewCheckpoint, Success};
pub use self::error::StoreError;
pub use self::idempotency_key::{IdempotencyKey, ReplayedRequest};
pub use self::outcomes::{
    AddPartOutcome, CancelOutcome, CancelUploadOutcome, CompleteUploadOutcome, DeleteFileOutcome,
    DeleteModelOutcome, MAX_PARTS, PauseOutcome, ResumeOutcome,
};
pub use self::page::{MetadataFilter, Order, Page, PageRequest};
pub use self::webhooks::{DueDeliveries, WebhookStore};
use crate::domain::file::{FilePurpose, FileRecord};
use crate::domain::job::{
    Job, JobCheckpoint, JobError, JobEvent, NewEvent, ResolvedHyperparameters, StepMetrics,
};
use crate::domain::model::{CheckpointPermission, TunedModel};
use crate::domain::project::Project;
use crate::domain::upload::{Upload, UploadPart};

/// What the product remembers. Every method is one transaction; one that ends a job fills the outbox
/// of webhooks too.
#[async_trait]
pub trait Store: WebhookStore + KeyStore {
    // ---- files

    /// Adds a file whose blob lies in place already.
    async fn insert_file(&self, file: &FileRecord) -> Result<(), StoreError>;
    /// A file by id. One that has expired is there only as long as a job that has not ended uses it;
    /// that holds for lists too.
    async fn file(&self, id: &str) -> Result<Option<FileRecord>, StoreError>;
    /// A project's files, by creation, without the reports of their uploads.
    async fn list_files(
        &self,
        project: &Project,
        purpose: Option<FilePurpose>,
        order: Order,
        page: &PageRequest,
    ) -> Result<Page<FileRecord>, StoreError>;
    /// Removes a file's row, unless something needs it.
    async fn delete_file(&self, id: &str) -> Result<DeleteFileOutcome, StoreError>;
    /// Removes the rows of files that have expired and that nothing needs; the caller removes the
    /// blobs, whose keys it returns.
    async fn remove_expired_files(&self) -> Result<Vec<String>, StoreError>;
    /// Every blob key that a row names; for the sweep at start.
    async fn blob_keys(&self) -> Result<Vec<String>, StoreError>;

    // ---- uploads in parts

    /// Adds an upload.
    async fn insert_upload(&self, upload: &Upload) -> Result<(), StoreError>;
    /// An upload by id. One whose time is over has expired, whether it is noted or not.
    async fn upload(&self, id: &str) -> Result<Option<Upload>, StoreError>;
    /// Adds a part whose blob lies in place already; `None` when there is no such upload.
    async fn add_part(&self, part: &UploadPart) -> Result<Option<AddPartOutcome>, StoreError>;
    /// The parts that an upload has so far, in no order that matters.
    async fn upload_parts(&self, upload_id: &str) -> Result<Vec<UploadPart>, StoreError>;
    /// Turns an upload into a file whose blob lies in place already; `None` when there is no such
    /// upload. One whose time is over since the completion began is completed all the same.
    async fn complete_upload(
        &self,
        id: &str,
        part_ids: &[String],
        file: &FileRecord,
    ) -> Result<Option<CompleteUploadOutcome>, StoreError>;
    /// Ends an upload; `None` when there is no such upload.
    async fn cancel_upload(&self, id: &str) -> Result<Option<CancelUploadOutcome>, StoreError>;
    /// Notes which uploads have expired more than `grace_seconds` ago; the caller removes the blobs of
    /// the keys that are returned.
    async fn expire_uploads(&self, grace_seconds: i64) -> Result<Vec<String>, StoreError>;

    // ---- jobs

    /// Adds a job with its first events; fails with [`StoreError::MissingFile`] or
    /// [`StoreError::MissingModel`] when its project has no file or model that it names, and with
    /// [`StoreError::QueueFull`] when it would wait and `most_waiting` of the project do already. It
    /// may have failed already, when its data were found to be bad.
    async fn insert_job(
        &self,
        job: &Job,
        events: &[NewEvent],
        most_waiting: u32,
    ) -> Result<(), StoreError>;
    /// What an earlier request with the same idempotency key was, if there was one.
    async fn earlier_request(
        &self,
        request: &IdempotencyKey,
    ) -> Result<Option<ReplayedRequest>, StoreError>;
    /// [`Store::insert_job`] for a request with an idempotency key; adds nothing when there was an
    /// earlier one with the same key, and returns that.
    async fn insert_job_once(
        &self,
        job: &Job,
        events: &[NewEvent],
        request: &IdempotencyKey,
        most_waiting: u32,
    ) -> Result<Option<ReplayedRequest>, StoreError>;
    /// A job by id. Shared, as are [`Store::list_events`], by all who ask at about the same time.
    async fn job(&self, id: &str) -> Result<Option<Arc<CachedReply<Job>>>, StoreError>;
    /// A project's jobs, newest first.
    async fn list_jobs(
        &self,
        project: &Project,
        metadata: &MetadataFilter,
        page: &PageRequest,
    ) -> Result<Page<Job>, StoreError>;
    /// Cancels a job, or requests that its executor does; `None` when there is no such job.
    async fn request_cancel(&self, id: &str) -> Result<Option<CancelOutcome>, StoreError>;
    /// Pauses a job, or requests that its executor does; `None` when there is no such job. `events` are
    /// appended when the request is new.
    async fn request_pause(
        &self,
        id: &str,
        events: &[NewEvent],
    ) -> Result<Option<PauseOutcome>, StoreError>;
    /// Queues a paused job again, in its old place, or withdraws the request to pause a running one;
    /// `None` when there is no such job. `events` are appended when that changes something.
    async fn resume(
        &self,
        id: &str,
        events: &[NewEvent],
    ) -> Result<Option<ResumeOutcome>, StoreError>;
    /// Events of a job, newest first.
    async fn list_events(
        &self,
        job_id: &str,
        page: &PageRequest,
    ) -> Result<Arc<CachedReply<Page<JobEvent>>>, StoreError>;
    /// Events of a job, oldest first.
    async fn follow_events(
        &self,
        job_id: &str,
        page: &PageRequest,
    ) -> Result<Page<JobEvent>, StoreError>;
    /// Metrics events of a job by step, those after the step `after`, so many at most. A step that
    /// ran twice comes once, as it ran last.
    async fn list_metrics(
        &self,
        job_id: &str,
        after: u64,
        limit: u32,
    ) -> Result<Page<JobEvent>, StoreError>;
    /// Checkpoints of a job, newest first.
    async fn list_checkpoints(
        &self,
        job_id: &str,
        page: &PageRequest,
    ) -> Result<Page<JobCheckpoint>, StoreError>;

    // ---- models

    /// A fine-tuned model or checkpoint by name.
    async fn model(&self, id: &str) -> Result<Option<TunedModel>, StoreError>;
    /// A project's fine-tuned models without checkpoints, newest first.
    async fn list_models(&self, project: &Project) -> Result<Vec<TunedModel>, StoreError>;
    /// Removes a model and its checkpoints by the model's name, or one checkpoint by its own, unless
    /// a job continues from it. The job and the files stay, and the files can be deleted then.
    async fn delete_model(&self, id: &str) -> Result<DeleteModelOutcome, StoreError>;

    // ---- permissions

    /// Lets these projects use a fine-tuned model or checkpoint; their permissions, each once. One that
    /// a project has already stays as it is. `None` when there is no such model.
    async fn grant_permissions(
        &self,
        checkpoint: &str,
        projects: &[Project],
    ) -> Result<Option<Vec<CheckpointPermission>>, StoreError>;
    /// Permissions of a model, of all projects or of one, by creation.
    async fn list_permissions(
        &self,
        checkpoint: &str,
        project: Option<&str>,
        order: Order,
        page: &PageRequest,
    ) -> Result<Page<CheckpointPermission>, StoreError>;
    /// Takes a permission of this model back; `false` when there is none of this id.
    async fn delete_permission(&self, checkpoint: &str, id: &str) -> Result<bool, StoreError>;
    /// Whether a project has been let use the model. That a project may use its own is not noted here.
    async fn is_permitted(&self, checkpoint: &str, project: &Project) -> Result<bool, StoreError>;

    // ---- the queue: see `crate::queue`

    /// Puts every `running` job back to `queued` and appends `events` to each; for the start of the
    /// only server on this database, when no executor can hold them. Returns their ids. Their
    /// attempt does not count; those whose user has cancelled or paused them are cancelled or
    /// paused instead.
    async fn requeue_orphans(&self, events: &[NewEvent]) -> Result<Vec<String>, StoreError>;
    /// Claims a job that waits and has not been postponed, or whose lease has run out. Projects take turns,
    /// and one whose job was given back keeps its own; within a project the oldest goes first.
    async fn claim(
        &self,
        owner: &str,
        lease_seconds: i64,
    ) -> Result<Option<(Claim, Job)>, StoreError>;
    /// Renews a claim and brings back what the user requests.
    async fn heartbeat(
        &self,
        claim: &Claim,
        lease_seconds: i64,
    ) -> Result<HeartbeatReply, StoreError>;
    /// Gives a claimed job back to the queue, for a shutdown or a pause; does not count as an
    /// attempt. When its user has cancelled or paused it, it is cancelled or paused instead.
    async fn release(&self, claim: &Claim, events: &[NewEvent]) -> Result<(), StoreError>;
    /// Gives a claimed job back to the queue after its trainer died; the attempt counts. When its user
    /// has cancelled or paused it, it is cancelled or paused instead.
    async fn retry(&self, claim: &Claim, events: &[NewEvent]) -> Result<(), StoreError>;

    /// Gives a claimed job back to the queue for so many seconds, because others hold what it lacks; does
    /// not count as an attempt. When its user has cancelled or paused it, it is cancelled or paused instead.
    async fn postpone(
        &self,
        claim: &Claim,
        seconds: i64,
        events: &[NewEvent],
    ) -> Result<(), StoreError>;

    // ---- progress of a claimed job

    /// Appends events.
    async fn append_events(&self, claim: &Claim, events: &[NewEvent]) -> Result<(), StoreError>;
    /// Records the resolved hyperparameters.
    async fn record_resolved(
        &self,
        claim: &Claim,
        resolved: &ResolvedHyperparameters,
        total_steps: u64,
        events: &[NewEvent],
    ) -> Result<(), StoreError>;
    /// Records how far training is, with the events of the step (if it has any).
    async fn record_progress(
        &self,
        claim: &Claim,
        metrics: &StepMetrics,
        estimated_finish: Option<i64>,
        events: &[NewEvent],
    ) -> Result<(), StoreError>;
    /// Adds a checkpoint with its model and its files. A second one for the same job and step adds
    /// nothing and is not an error, because steps may run twice, and neither is one that has been removed;
    /// `false` says so, and that the blobs are not needed.
    async fn add_checkpoint(
        &self,
        claim: &Claim,
        checkpoint: &NewCheckpoint<'_>,
    ) -> Result<bool, StoreError>;
    /// Removes the checkpoints of a job up to the step `through` that are not of the `retained` steps, with
    /// their models and files; the keys of their blobs, which the caller removes. One from which a job
    /// continues stays until the next time.
    async fn retain_checkpoints(
        &self,
        claim: &Claim,
        retained: &[u64],
        through: u64,
    ) -> Result<Vec<String>, StoreError>;
    /// Ends the job as succeeded, all in one transaction.
    async fn finish_succeeded(&self, claim: &Claim, success: &Success) -> Result<(), StoreError>;
    /// Ends the job with an error.
    async fn finish_failed(
        &self,
        claim: &Claim,
        error: &JobError,
        events: &[NewEvent],
    ) -> Result<(), StoreError>;
    /// Ends the job as cancelled.
    async fn finish_cancelled(&self, claim: &Claim) -> Result<(), StoreError>;

    // ---- health

    /// Answers when the database can be read and written; [`StoreError::Full`] on a full disk.
    async fn ping(&self) -> Result<(), StoreError>;
}
