//! What can go wrong in the store.

use crate::domain::job::JobStatus;

/// What can go wrong in the store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database failed.
    #[error("the database failed: {0}")]
    Database(#[from] sqlx::Error),
    /// The disk is full, or the room that is kept on it has been used.
    #[error("the disk of the database is full")]
    Full,
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
    /// A state transition that a job may not make.
    #[error("job {job_id} cannot go from {} to {}", from.as_str(), to.as_str())]
    IllegalTransition {
        /// The job.
        job_id: String,
        /// Its state.
        from: JobStatus,
        /// The state that it was to take.
        to: JobStatus,
    },
    /// The database cannot be opened as it is.
    #[error("{0}")]
    Unusable(String),
}
