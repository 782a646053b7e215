//! Stage 3, the queue: whose turn it is, who works on it, and for how long.
//!
//! The rows live in the store; this module wakes those who wait for work.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;

use crate::domain::job::Job;
use crate::store::{Claim, HeartbeatReply, Store, StoreError};

/// Seconds after which a claim that is not renewed may be taken over.
pub const LEASE_SECONDS: i64 = 60;

/// How often a claim is renewed. Short, because a heartbeat also brings the user's wish to cancel
/// or pause when the wake-up is missed.
pub const HEARTBEAT: Duration = Duration::from_secs(10);

/// How often an idle executor looks for work when nobody wakes it.
pub const POLL: Duration = Duration::from_secs(2);

/// How often what is no longer needed is removed when nobody says that there is something.
pub const CHORES: Duration = Duration::from_secs(60);

/// The durable queue, and a bell for those who wait in this process.
pub struct Queue {
    store: Arc<dyn Store>,
    owner: String,
    work: Notify,
    wishes: Notify,
    chores: Notify,
}

impl Queue {
    /// A queue over `store`, in which this process is called `owner`.
    pub fn new(store: Arc<dyn Store>, owner: String) -> Self {
        Self { store, owner, work: Notify::new(), wishes: Notify::new(), chores: Notify::new() }
    }

    /// Says that a job waits.
    pub fn announce_work(&self) {
        self.work.notify_one();
    }

    /// Says that a running job should end or pause.
    pub fn announce_wish(&self) {
        self.wishes.notify_one();
    }

    /// Returns when there may be work: at the bell, or after [`POLL`].
    pub async fn wait_for_work(&self) {
        // A bell rung before the wait is kept by `Notify`, so no announcement is missed.
        let _timeout_means_poll = tokio::time::timeout(POLL, self.work.notified()).await;
    }

    /// Returns when a running job should look what its user wants: at the bell, or when the next
    /// heartbeat is due.
    pub async fn wait_for_heartbeat(&self) {
        let _timeout_means_due = tokio::time::timeout(HEARTBEAT, self.wishes.notified()).await;
    }

    /// Says that something is no longer needed: a job has ended that no executor holds.
    pub fn announce_chores(&self) {
        self.chores.notify_one();
    }

    /// Returns when something may have to be removed: at the bell, or after [`CHORES`].
    pub async fn wait_for_chores(&self) {
        let _timeout_means_due = tokio::time::timeout(CHORES, self.chores.notified()).await;
    }

    /// Claims the oldest job that waits.
    pub async fn claim(&self) -> Result<Option<(Claim, Job)>, StoreError> {
        self.store.claim(&self.owner, LEASE_SECONDS).await
    }

    /// Renews a claim.
    pub async fn heartbeat(&self, claim: &Claim) -> Result<HeartbeatReply, StoreError> {
        self.store.heartbeat(claim, LEASE_SECONDS).await
    }
}
