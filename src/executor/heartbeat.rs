//! The heartbeat of a claimed job: a task beside the work that renews the claim and hears what the
//! user wants, whatever the work is waiting for.

use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::queue::Queue;
use crate::store::{Claim, HeartbeatReply, StoreError};

/// What the heartbeat has heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wish {
    /// Go on.
    GoOn,
    /// The user wants the job to end.
    Cancel,
    /// The user wants the job to pause.
    Pause,
    /// Another executor holds the job: write nothing more.
    Lost,
}

/// Beats for as long as it lives.
pub(super) struct Heartbeat {
    wishes: watch::Receiver<Wish>,
    /// Dropping the set ends the task.
    _task: JoinSet<()>,
}

impl Heartbeat {
    /// Begins to beat for `claim`.
    pub(super) fn start(queue: Arc<Queue>, claim: Claim) -> Self {
        let (sender, wishes) = watch::channel(Wish::GoOn);
        let mut task = JoinSet::new();
        task.spawn(beat(queue, claim, sender));
        Self { wishes, _task: task }
    }

    /// What has been heard so far.
    pub(super) fn wish(&self) -> Wish {
        *self.wishes.borrow()
    }

    /// Returns when something other than `known` has been heard, and what.
    pub(super) async fn change_from(&mut self, known: Wish) -> Wish {
        let changed = self.wishes.wait_for(|wish| *wish != known).await.map(|wish| *wish);
        match changed {
            Ok(wish) => wish,
            // The task has ended after a loss, and the loss is `known`: nothing changes any more.
            Err(_closed) => std::future::pending().await,
        }
    }
}

async fn beat(queue: Arc<Queue>, claim: Claim, wishes: watch::Sender<Wish>) {
    loop {
        queue.wait_for_heartbeat().await;
        match queue.heartbeat(&claim).await {
            Ok(HeartbeatReply { cancel_requested: true, .. }) => {
                wishes.send_replace(Wish::Cancel);
            }
            Ok(HeartbeatReply { pause_requested: true, .. }) => {
                wishes.send_replace(Wish::Pause);
            }
            Ok(_) => {
                wishes.send_replace(Wish::GoOn);
            }
            Err(StoreError::LostClaim(_)) => {
                wishes.send_replace(Wish::Lost);
                return;
            }
            // The next beat tries again; if the lease runs out meanwhile, the fence holds.
            Err(error) => tracing::warn!(job.id = claim.job_id, %error, "heartbeat failed"),
        }
    }
}
