//! Periodic garbage collection: work folders of jobs that were cancelled while no executor held them,
//! files and uploads that have expired.

use tokio_util::sync::CancellationToken;

use crate::executor::context::ExecutorContext;
use crate::executor::error::ExecutorError;
use crate::executor::work_folder;

/// How long the parts of an upload stay after its time is over: it may be in the middle of being
/// completed.
const COMPLETION_GRACE_SECONDS: i64 = 3600;

/// Collects garbage again and again until `shutdown`. What fails is logged and tried again the next
/// time.
pub(in crate::executor) async fn run(context: &ExecutorContext, shutdown: &CancellationToken) {
    loop {
        if let Err(error) = work_folder::remove_ended(context).await {
            tracing::warn!(%error, "work folders of jobs that have ended are not removed");
        }
        if let Err(error) = remove_expired(context).await {
            tracing::warn!(%error, "files or uploads that have expired are not removed");
        }
        if shutdown.run_until_cancelled(context.queue.wait_for_garbage()).await.is_none() {
            return;
        }
    }
}

/// Rows first: a row never names bytes that are not there. Blobs that stay without a row are removed at
/// the next start.
async fn remove_expired(context: &ExecutorContext) -> Result<(), ExecutorError> {
    let mut keys = context.store.remove_expired_files().await?;
    keys.extend(context.store.expire_uploads(COMPLETION_GRACE_SECONDS).await?);
    for key in keys {
        context.blobs.delete(&key).await?;
        tracing::info!(key, "expired and removed");
    }
    Ok(())
}
