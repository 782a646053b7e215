//! What is removed while the server runs: work folders of jobs that were cancelled while nobody
//! worked on them, files and uploads that have expired.

use tokio_util::sync::CancellationToken;

use super::{ExecutorError, Tools, staging};

/// How long the parts of an upload stay after its time is over: it may be in the middle of being
/// completed.
const COMPLETION_GRACE_SECONDS: i64 = 3600;

/// Looks again and again until `shutdown`. What fails is logged and tried again at the next look.
pub(super) async fn run(tools: &Tools, shutdown: &CancellationToken) {
    loop {
        if let Err(error) = staging::remove_ended(tools).await {
            tracing::warn!(%error, "work folders of jobs that have ended stay");
        }
        if let Err(error) = remove_expired(tools).await {
            tracing::warn!(%error, "files or uploads that have expired stay");
        }
        if shutdown.run_until_cancelled(tools.queue.wait_for_chores()).await.is_none() {
            return;
        }
    }
}

/// Rows first: a row never names bytes that are not there. Bytes that stay without a row are swept at
/// the next start.
async fn remove_expired(tools: &Tools) -> Result<(), ExecutorError> {
    let mut keys = tools.store.remove_expired_files().await?;
    keys.extend(tools.store.expire_uploads(COMPLETION_GRACE_SECONDS).await?);
    for key in keys {
        tools.blobs.delete(&key).await?;
        tracing::info!(key, "it has expired and is removed");
    }
    Ok(())
}
