//! The outcomes of requests that change something.

use crate::domain::file::FileRecord;
use crate::domain::job::Job;
use crate::domain::upload::Upload;

/// The outcome of a request to cancel a job.
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

/// The outcome of a request to pause a job.
#[derive(Debug, Clone, PartialEq)]
pub enum PauseOutcome {
    /// It waited, and is paused now.
    Paused(Job),
    /// It runs; its executor has been told and will pause it within a step.
    Requested(Job),
    /// It was paused before.
    AlreadyPaused(Job),
    /// It has ended or is about to, or its files are still being validated.
    Refused(Job),
}

/// The outcome of a request to resume a job.
#[derive(Debug, Clone, PartialEq)]
pub enum ResumeOutcome {
    /// It was paused and waits again, or was to be paused and is not.
    Resumed(Job),
    /// It was not paused.
    NotPaused(Job),
    /// It has ended or is about to, or its files are still being validated.
    Refused(Job),
}

/// The outcome of a request to delete a file.
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

/// The outcome of a request to delete a model.
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

/// The outcome of adding a part to an upload.
#[derive(Debug, Clone, PartialEq)]
pub enum AddPartOutcome {
    /// It is added.
    Added,
    /// The upload takes none any more.
    NotPending(Upload),
    /// The parts would hold more than twice the upload's bytes, or be more than [`MAX_PARTS`].
    TooMuch(Upload),
}

/// The outcome of completing an upload.
#[derive(Debug, Clone, PartialEq)]
pub enum CompleteUploadOutcome {
    /// It is a file now; the caller removes the blobs of these keys.
    Completed(Upload, Vec<String>),
    /// It was ended before.
    NotPending(Upload),
}

/// The outcome of cancelling an upload.
#[derive(Debug, Clone, PartialEq)]
pub enum CancelUploadOutcome {
    /// It is ended now; the caller removes the blobs of these keys.
    Cancelled(Upload, Vec<String>),
    /// It was cancelled before.
    AlreadyCancelled(Upload),
    /// It is completed or has expired.
    NotPending(Upload),
}
