//! The heartbeat of a claimed job: a task beside the supervisor that renews the claim and brings back
//! what the user requests of the job.

use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::queue::Queue;
use crate::store::{Claim, HeartbeatReply, StoreError};

/// What is requested of a claimed job, as the last heartbeat brought it back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ControlRequest {
    /// Nothing: the job goes on.
    None,
    /// The user cancels the job.
    Cancel,
    /// The user pauses the job.
    Pause,
    /// Another executor holds the job: write nothing more.
    ClaimLost,
}

/// Renews a claim for as long as it lives.
pub(super) struct Heartbeat {
    requests: watch::Receiver<ControlRequest>,
    /// Dropping the set ends the task.
    _task: JoinSet<()>,
}

impl Heartbeat {
    /// Starts to renew `claim`.
    pub(super) fn start(queue: Arc<Queue>, claim: Claim) -> Self {
        let (sender, requests) = watch::channel(ControlRequest::None);
        let mut task = JoinSet::new();
        task.spawn(renew(queue, claim, sender));
        Self { requests, _task: task }
    }

    /// What is requested as of the last heartbeat.
    pub(super) fn request(&self) -> ControlRequest {
        *self.requests.borrow()
    }

    /// Waits for a request other than `known`.
    pub(super) async fn change_from(&mut self, known: ControlRequest) -> ControlRequest {
        let changed = self.requests.wait_for(|request| *request != known).await.map(|now| *now);
        match changed {
            Ok(request) => request,
            // The task ends after the claim is lost, and `known` is that: nothing changes any more.
            Err(_closed) => std::future::pending().await,
        }
    }
}

async fn renew(queue: Arc<Queue>, claim: Claim, requests: watch::Sender<ControlRequest>) {
    loop {
        queue.wait_for_heartbeat().await;
        match queue.heartbeat(&claim).await {
            Ok(HeartbeatReply { cancel_requested: true, .. }) => {
                requests.send_replace(ControlRequest::Cancel);
            }
            Ok(HeartbeatReply { pause_requested: true, .. }) => {
                requests.send_replace(ControlRequest::Pause);
            }
            Ok(_) => {
                requests.send_replace(ControlRequest::None);
            }
            Err(StoreError::LostClaim(_)) => {
                requests.send_replace(ControlRequest::ClaimLost);
                return;
            }
            // The next heartbeat tries again. When the lease runs out meanwhile, the store refuses
            // every write of this claim.
            Err(error) => tracing::warn!(job.id = claim.job_id, %error, "heartbeat failed"),
        }
    }
}
