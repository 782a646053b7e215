//! What a server that died left on the disk, removed at the next start: blobs whose row was never
//! written, half-written uploads, work folders of jobs that have ended.

use std::collections::HashSet;

use super::{ExecutorError, Tools};
use crate::blobs::{RESULTS, UPLOADS};

/// Removes them. Only before anything else uses the store and the blobs: an upload in progress
/// has a blob and no row yet.
pub(super) async fn sweep(tools: &Tools) -> Result<(), ExecutorError> {
    let unfinished = tools.blobs.sweep_unfinished().await?;

    let named: HashSet<String> = tools.store.blob_keys().await?.into_iter().collect();
    let mut unnamed = 0;
    for key in tools.blobs.list().await? {
        let is_ours = key.starts_with(UPLOADS) || key.starts_with(RESULTS);
        if is_ours && !named.contains(&key) {
            tools.blobs.delete(&key).await?;
            unnamed += 1;
        }
    }

    let mut folders = 0;
    let failed =
        |source| ExecutorError::WorkFolder { path: tools.work_dir.display().to_string(), source };
    let mut entries = tokio::fs::read_dir(&tools.work_dir).await.map_err(failed)?;
    while let Some(entry) = entries.next_entry().await.map_err(failed)? {
        let name = entry.file_name();
        // Only folders that we made: their names are job ids.
        let Some(job_id) = name.to_str().filter(|name| name.starts_with("ftjob-")) else {
            continue;
        };
        let is_wanted = tools.store.job(job_id).await?.is_some_and(|job| !job.status.is_terminal());
        if !is_wanted {
            tokio::fs::remove_dir_all(entry.path()).await.map_err(failed)?;
            folders += 1;
        }
    }
    if unfinished + unnamed + folders > 0 {
        tracing::info!(unfinished, unnamed, folders, "leftovers of an earlier server removed");
    }
    Ok(())
}
