//! Stage 3, the store: what the product remembers, behind one trait.
//!
//! SQLite stands behind it today; PostgreSQL can come later behind the same trait, so the SQL keeps
//! to TEXT ids, integer times, JSON as text and `$1` parameters. Every writing transaction begins
//! with `BEGIN IMMEDIATE`. A write that belongs to a claimed job carries its [`Claim`] and is
//! refused with [`StoreError::LostClaim`] when another executor holds the job by now.

mod cached_reply;
mod keys;
pub mod sqlite;
mod webhooks;

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;

pub use self::cached_reply::CachedReply;
pub use self::keys::{KeyStore, RevokeOutcome};
pub use self::webhooks::WebhookStore;
use crate::domain::file::{FilePurpose, FileRecord};
use crate::domain::job::{
    Job, JobCheckpoint, JobError, JobEvent, JobStatus, NewEvent, ResolvedHyperparameters,
    StepMetrics,
};
use crate::domain::model::{CheckpointPermission, TunedModel};
use crate::domain::project::Project;
use crate::domain::upload::{Upload, UploadPart};

/// What can go wrong in the store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database failed.
    #[error("the database failed: {0}")]
    Database(#[from] sqlx::Error),
    /// A row holds what this version cannot read.
    #[error("the database holds an unreadable value in {column}: {reason}")]
    Corrupt {
        /// Table and column.
        column: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A list cursor that names nothing.
    #[error("no item with id {0:?} to continue after")]
    UnknownCursor(String),
    /// Another executor holds the job now: stop, and write nothing more.
    #[error("the claim on job {0} is lost")]
    LostClaim(String),
    /// A job names a file that is not there (any more).
    #[error("no file with id {0:?}")]
    MissingFile(String),
    /// A job continues from a model that is not there (any more).
    #[error("no model with id {0:?}")]
    MissingModel(String),
    /// As many jobs of the project wait as may.
    #[error("{0} jobs wait already")]
    QueueFull(u32),
    /// A move that the table of moves does not have.
    #[error("job {job_id} cannot go from {} to {}", from.as_str(), to.as_str())]
    IllegalTransition {
        /// The job.
        job_id: String,
        /// Where it stands.
        from: JobStatus,
        /// Where it was to go.
        to: JobStatus,
    },
    /// The database cannot be opened as it is.
    #[error("{0}")]
    Unusable(String),
}

/// Which part of a list: after a cursor, so many.
#[derive(Debug, Clone, Default)]
pub struct PageRequest {
    /// Id of the last item of the page before.
    pub after: Option<String>,
    /// Most items, at least 1.
    pub limit: u32,
}

/// One page of a list.
#[derive(Debug, Clone)]
pub struct Page<T> {
    /// The items.
    pub items: Vec<T>,
    /// Whether there is another page.
    pub has_more: bool,
}

/// Order of a list by creation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Order {
    /// Oldest first.
    Ascending,
    /// Newest first.
    #[default]
    Descending,
}

/// The right to work on a job, until another executor takes it over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The job.
    pub job_id: String,
    /// Rises with every claim of the job: the fence.
    pub epoch: i64,
}

/// What a heartbeat brings back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeartbeatReply {
    /// The user wants the job to end.
    pub cancel_requested: bool,
    /// The user wants the job to pause.
    pub pause_requested: bool,
}

/// Which jobs a list holds, by their metadata.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MetadataFilter {
    /// Those that hold all of these pairs; no pair means every job.
    Pairs(BTreeMap<String, String>),
    /// Those that were created without metadata.
    Absent,
}

/// A client's own name for a request, and what the request said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdempotencyKey {
    /// Whose name it is: projects do not share them.
    pub project: Project,
    /// The name.
    pub key: String,
    /// Digest of the body.
    pub digest: String,
}

/// What an earlier request of the same name was.
#[derive(Debug, Clone, PartialEq)]
pub enum ReplayedRequest {
    /// It said the same, and made this job.
    Same(Box<Job>),
    /// It said something else.
    Other,
}

/// What asking for an end came to.
#[derive(Debug, Clone, PartialEq)]
pub enum CancelOutcome {
    /// It had not started, and is cancelled now.
    Cancelled(Job),
    /// It runs; its executor has been told and will end it within a step.
    Requested(Job),
    /// It was cancelled before.
    AlreadyCancelled(Job),
    /// It has succeeded or failed.
    TooLate(Job),
}

/// What asking for a pause came to.
#[derive(Debug, Clone, PartialEq)]
pub enum PauseOutcome {
    /// It waited, and is paused now.
    Paused(Job),
    /// It runs; its executor has been told and will pause it within a step.
    Requested(Job),
    /// It was paused before.
    AlreadyPaused(Job),
    /// It has ended or is about to, or its files are still being looked at.
    Refused(Job),
}

/// What asking to go on came to.
#[derive(Debug, Clone, PartialEq)]
pub enum ResumeOutcome {
    /// It was paused and waits again, or was to be paused and is not.
    Resumed(Job),
    /// It was not paused.
    NotPaused(Job),
    /// It has ended or is about to, or its files are still being looked at.
    Refused(Job),
}

/// What asking to delete a file came to.
#[derive(Debug, Clone, PartialEq)]
pub enum DeleteFileOutcome {
    /// The row is gone; the caller removes the blob.
    Deleted(Box<FileRecord>),
    /// A job that has not ended uses it.
    UsedByJob(String),
    /// A model that still answers needs it.
    UsedByModel(String),
    /// No such file.
    NotFound,
}

/// What asking to delete a model came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeleteModelOutcome {
    /// The model and its checkpoints are gone; the job and the files stay.
    Deleted,
    /// A job that has not ended continues from it or from one of its checkpoints.
    UsedByJob(String),
    /// No such model.
    NotFound,
}

/// Most parts of one upload.
pub const MAX_PARTS: i64 = 10_000;

/// What adding a part to an upload came to.
#[derive(Debug, Clone, PartialEq)]
pub enum AddPartOutcome {
    /// It is added.
    Added,
    /// The upload takes none any more.
    NotPending(Upload),
    /// The parts would hold more than twice the upload's bytes, or be more than [`MAX_PARTS`].
    TooMuch(Upload),
}

/// What completing an upload came to.
#[derive(Debug, Clone, PartialEq)]
pub enum CompleteUploadOutcome {
    /// It is a file now; the caller removes the blobs of these keys.
    Completed(Upload, Vec<String>),
    /// It was ended before.
    NotPending(Upload),
}

/// What cancelling an upload came to.
#[derive(Debug, Clone, PartialEq)]
pub enum CancelUploadOutcome {
    /// It is ended now; the caller removes the blobs of these keys.
    Cancelled(Upload, Vec<String>),
    /// It was cancelled before.
    AlreadyCancelled(Upload),
    /// It is completed or has expired.
    NotPending(Upload),
}

/// Everything that becomes visible at the moment a job succeeds, in one transaction.
#[derive(Debug, Clone)]
pub struct Success {
    /// The model; its files are among `files`.
    pub model: TunedModel,
    /// Rows of the produced files whose blobs lie in place already.
    pub files: Vec<FileRecord>,
    /// Ids of `files` in the order in which clients see them (metrics CSV first).
    pub result_files: Vec<String>,
    /// Tokens trained.
    pub trained_tokens: i64,
    /// Optimiser steps done.
    pub trained_steps: u64,
    /// The last events.
    pub events: Vec<NewEvent>,
}

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
    /// A project's files, by creation.
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
    /// What an earlier request of the same name was, if there was one.
    async fn earlier_request(
        &self,
        request: &IdempotencyKey,
    ) -> Result<Option<ReplayedRequest>, StoreError>;
    /// [`Store::insert_job`] for a request with a name; adds nothing when there was an earlier one,
    /// and returns that.
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
    /// Asks for the end of a job; `None` when there is no such job.
    async fn request_cancel(&self, id: &str) -> Result<Option<CancelOutcome>, StoreError>;
    /// Asks for a pause of a job; `None` when there is no such job. `events` are appended when the
    /// wish is new.
    async fn request_pause(
        &self,
        id: &str,
        events: &[NewEvent],
    ) -> Result<Option<PauseOutcome>, StoreError>;
    /// Lets a paused job wait for its turn again, in its old place, or withdraws the wish to pause a
    /// running one; `None` when there is no such job. `events` are appended when that changes
    /// something.
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
    /// only server on this database, when nobody can be working on them. Returns their ids. Their
    /// attempt does not count; those whose user wanted them to end or to pause are cancelled or
    /// paused instead.
    async fn requeue_orphans(&self, events: &[NewEvent]) -> Result<Vec<String>, StoreError>;
    /// Claims the oldest job that waits, or whose lease has run out.
    async fn claim(
        &self,
        owner: &str,
        lease_seconds: i64,
    ) -> Result<Option<(Claim, Job)>, StoreError>;
    /// Renews a claim and brings back what the user wants.
    async fn heartbeat(
        &self,
        claim: &Claim,
        lease_seconds: i64,
    ) -> Result<HeartbeatReply, StoreError>;
    /// Gives a claimed job back to the queue, for a shutdown or a pause; does not count as an
    /// attempt. When its user wants it to end or to pause, it is cancelled or paused instead.
    async fn release(&self, claim: &Claim, events: &[NewEvent]) -> Result<(), StoreError>;
    /// Gives a claimed job back to the queue after its trainer died; the attempt counts. When its
    /// user wants it to end or to pause, it is cancelled or paused instead.
    async fn retry(&self, claim: &Claim, events: &[NewEvent]) -> Result<(), StoreError>;

    // ---- progress of a claimed job

    /// Appends events.
    async fn append_events(&self, claim: &Claim, events: &[NewEvent]) -> Result<(), StoreError>;
    /// Records what the engine made of the hyperparameters.
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
    /// Adds a checkpoint with its model and its files, whose blobs lie in place already. A second
    /// one for the same job and step adds nothing and is not an error, because steps may run twice;
    /// `false` says so, and that the blobs are not needed.
    async fn add_checkpoint(
        &self,
        claim: &Claim,
        checkpoint: &JobCheckpoint,
        model: &TunedModel,
        files: &[FileRecord],
        events: &[NewEvent],
    ) -> Result<bool, StoreError>;
    /// Removes the checkpoint of a step with its model and its files; the keys of their blobs, which
    /// the caller removes. Nothing where there is none, or where a job continues from it.
    async fn remove_checkpoint(&self, claim: &Claim, step: u64) -> Result<Vec<String>, StoreError>;
    /// Ends the job well, all in one transaction.
    async fn finish_succeeded(&self, claim: &Claim, success: &Success) -> Result<(), StoreError>;
    /// Ends the job with an error.
    async fn finish_failed(
        &self,
        claim: &Claim,
        error: &JobError,
        events: &[NewEvent],
    ) -> Result<(), StoreError>;
    /// Ends the job as the user wished.
    async fn finish_cancelled(&self, claim: &Claim) -> Result<(), StoreError>;

    // ---- health

    /// Answers when the database does.
    async fn ping(&self) -> Result<(), StoreError>;
}
