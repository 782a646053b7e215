//! What a request that changes something comes to: an outcome for each.

use crate::domain::file::FileRecord;
use crate::domain::job::Job;
use crate::domain::upload::Upload;

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
    /// It has ended or is about to, or its files are still being validated.
    Refused(Job),
}

/// What asking to go on came to.
#[derive(Debug, Clone, PartialEq)]
pub enum ResumeOutcome {
    /// It was paused and waits again, or was to be paused and is not.
    Resumed(Job),
    /// It was not paused.
    NotPaused(Job),
    /// It has ended or is about to, or its files are still being validated.
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
