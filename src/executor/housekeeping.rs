//! What is removed while the server runs: work folders of jobs that were cancelled while nobody
//! worked on them.

use tokio_util::sync::CancellationToken;

use super::{Tools, staging};

/// Looks again and again until `shutdown`. What fails is logged and tried again at the next look.
pub(super) async fn run(tools: &Tools, shutdown: &CancellationToken) {
    loop {
        if let Err(error) = staging::remove_ended(tools).await {
            tracing::warn!(%error, "work folders of jobs that have ended stay");
        }
        if shutdown.run_until_cancelled(tools.queue.wait_for_chores()).await.is_none() {
            return;
        }
    }
}
