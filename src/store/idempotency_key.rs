//! Idempotency keys: a request with the key of an earlier one is a replay of it.

use crate::domain::job::Job;
use crate::domain::project::Project;

/// A client's own key for a request, and the digest of the request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdempotencyKey {
    /// Whose key it is: projects do not share them.
    pub project: Project,
    /// The key.
    pub key: String,
    /// Digest of the body.
    pub digest: String,
}

/// What an earlier request with the same key was.
#[derive(Debug, Clone, PartialEq)]
pub enum ReplayedRequest {
    /// It had the same body, and made this job.
    Same(Box<Job>),
    /// It had another body.
    Other,
}
