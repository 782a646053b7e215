//! What is removed while the server runs: work folders of jobs that were cancelled while nobody
//! worked on them, and files that have expired.

use tokio_util::sync::CancellationToken;

use super::{ExecutorError, Tools, staging};

/// Looks again and again until `shutdown`. What fails is logged and tried again at the next look.
pub(super) async fn run(tools: &Tools, shutdown: &CancellationToken) {
    loop {
        if let Err(error) = staging::remove_ended(tools).await {
            tracing::warn!(%error, "work folders of jobs that have ended stay");
        }
        if let Err(error) = remove_expired_files(tools).await {
            tracing::warn!(%error, "files that have expired stay");
        }
        if shutdown.run_until_cancelled(tools.queue.wait_for_chores()).await.is_none() {
            return;
        }
    }
}

/// Rows first: a row never names bytes that are not there. Bytes that stay without a row are swept at
/// the next start.
async fn remove_expired_files(tools: &Tools) -> Result<(), ExecutorError> {
    for key in tools.store.remove_expired_files().await? {
        tools.blobs.delete(&key).await?;
        tracing::info!(key, "an expired file is removed");
    }
    Ok(())
}
