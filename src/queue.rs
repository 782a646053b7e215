//! Stage 3, the queue: which job is next, which executor has claimed it, and for how long.
//!
//! The rows live in the store; this module wakes those who wait for work.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;

use crate::domain::job::Job;
use crate::store::{Claim, HeartbeatReply, Store, StoreError};

/// Seconds after which a claim that is not renewed may be taken over.
pub const LEASE_SECONDS: i64 = 60;

/// How often a claim is renewed. Short, because a heartbeat also brings a request to cancel or pause
/// whose announcement was missed.
pub const HEARTBEAT: Duration = Duration::from_secs(10);

/// How often an idle executor polls for work when none is announced.
pub const POLL: Duration = Duration::from_secs(2);

/// How often garbage is collected when none is announced.
pub const GARBAGE_COLLECTION: Duration = Duration::from_secs(60);

/// The durable queue, with wake-ups for those who wait in this process.
pub struct Queue {
    store: Arc<dyn Store>,
    owner: String,
    work: Notify,
    control_requests: Notify,
    garbage: Notify,
}

impl Queue {
    /// A queue over `store`, whose claims name this process `owner`.
    pub fn new(store: Arc<dyn Store>, owner: String) -> Self {
        Self {
            store,
            owner,
            work: Notify::new(),
            control_requests: Notify::new(),
            garbage: Notify::new(),
        }
    }

    /// Announces that a job waits.
    pub fn announce_work(&self) {
        self.work.notify_one();
    }

    /// Announces that the user has requested the end or a pause of a running job.
    pub fn announce_control_request(&self) {
        self.control_requests.notify_one();
    }

    /// Waits until there may be work: until it is announced, or for [`POLL`].
    pub async fn wait_for_work(&self) {
        // `Notify` keeps an announcement that comes before the wait, so none is missed.
        let _timeout_means_poll = tokio::time::timeout(POLL, self.work.notified()).await;
    }

    /// Waits until the next heartbeat: until a control request is announced, or for [`HEARTBEAT`].
    pub async fn wait_for_heartbeat(&self) {
        let _timeout_means_due =
            tokio::time::timeout(HEARTBEAT, self.control_requests.notified()).await;
    }

    /// Announces garbage: a job has ended that no executor held.
    pub fn announce_garbage(&self) {
        self.garbage.notify_one();
    }

    /// Waits until there may be garbage: until it is announced, or for [`GARBAGE_COLLECTION`].
    pub async fn wait_for_garbage(&self) {
        let _timeout_means_due =
            tokio::time::timeout(GARBAGE_COLLECTION, self.garbage.notified()).await;
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
