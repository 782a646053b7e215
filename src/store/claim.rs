//! A claim on a job, and what its executor writes with it.

use crate::domain::file::FileRecord;
use crate::domain::job::{JobCheckpoint, NewEvent};
use crate::domain::model::TunedModel;

/// The right to work on a job, until another executor takes it over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The job.
    pub job_id: String,
    /// Rises with every claim of the job: the fencing token.
    pub epoch: i64,
}

/// What the user requests of a claimed job, as a heartbeat brings it back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeartbeatReply {
    /// The user cancels the job.
    pub cancel_requested: bool,
    /// The user pauses the job.
    pub pause_requested: bool,
}

/// A checkpoint that becomes visible with its model, its files and its events.
#[derive(Debug, Clone, Copy)]
pub struct NewCheckpoint<'a> {
    /// Its row.
    pub checkpoint: &'a JobCheckpoint,
    /// The model that it is.
    pub model: &'a TunedModel,
    /// The model's files, whose blobs lie in place already.
    pub files: &'a [FileRecord],
    /// Events that tell of it.
    pub events: &'a [NewEvent],
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
