//! Garbage collection at start-up: what a server that died left on the disk. These are blobs whose row
//! was never written, half-written uploads, and work folders of jobs that have ended.

use std::collections::HashSet;

use crate::blobs::{PARTS, RESULTS, UPLOADS};
use crate::executor::context::ExecutorContext;
use crate::executor::error::ExecutorError;
use crate::executor::work_folder;

/// Collects the garbage. Nothing else may use the store or the blobs meanwhile: an upload in progress
/// has a blob and no row yet.
pub(in crate::executor) async fn collect(context: &ExecutorContext) -> Result<(), ExecutorError> {
    let unfinished = context.blobs.sweep_unfinished().await?;

    let named: HashSet<String> = context.store.blob_keys().await?.into_iter().collect();
    let mut unnamed = 0;
    for key in context.blobs.list().await? {
        let is_ours = [UPLOADS, PARTS, RESULTS].iter().any(|prefix| key.starts_with(prefix));
        if is_ours && !named.contains(&key) {
            context.blobs.delete(&key).await?;
            unnamed += 1;
        }
    }

    let folders =
        work_folder::remove_ended(context).await? + work_folder::remove_dry_runs(context).await?;
    if unfinished + unnamed + folders > 0 {
        tracing::info!(unfinished, unnamed, folders, "garbage of an earlier server removed");
    }
    Ok(())
}
