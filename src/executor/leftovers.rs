//! What a server that died left on the disk, removed at the next start: blobs whose row was never
//! written, half-written uploads, work folders of jobs that have ended.

use std::collections::HashSet;

use super::{ExecutorError, Tools, staging};
use crate::blobs::{PARTS, RESULTS, UPLOADS};

/// Removes them. Only before anything else uses the store and the blobs: an upload in progress
/// has a blob and no row yet.
pub(super) async fn sweep(tools: &Tools) -> Result<(), ExecutorError> {
    let unfinished = tools.blobs.sweep_unfinished().await?;

    let named: HashSet<String> = tools.store.blob_keys().await?.into_iter().collect();
    let mut unnamed = 0;
    for key in tools.blobs.list().await? {
        let is_ours = [UPLOADS, PARTS, RESULTS].iter().any(|prefix| key.starts_with(prefix));
        if is_ours && !named.contains(&key) {
            tools.blobs.delete(&key).await?;
            unnamed += 1;
        }
    }

    let folders = staging::remove_ended(tools).await? + staging::remove_previews(tools).await?;
    if unfinished + unnamed + folders > 0 {
        tracing::info!(unfinished, unnamed, folders, "leftovers of an earlier server removed");
    }
    Ok(())
}
