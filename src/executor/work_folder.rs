//! The work folders of jobs and dry runs: where they are, and their removal.

use std::path::PathBuf;

use super::context::ExecutorContext;
use super::error::ExecutorError;

/// How the name of a job's work folder begins: it is the job's id.
const JOB_PREFIX: &str = "ftjob-";

/// How the name of a dry run's work folder begins.
pub(super) const DRY_RUN_PREFIX: &str = "dry-run-";

/// The work folder of a job or a dry run.
pub(super) fn path(context: &ExecutorContext, id: &str) -> PathBuf {
    context.work_dir.join(id)
}

/// Removes a work folder. One that cannot be removed now is removed by the periodic garbage collection.
pub(super) async fn remove(context: &ExecutorContext, id: &str) {
    let folder = path(context, id);
    match tokio::fs::remove_dir_all(&folder).await {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => {
            tracing::warn!(
                job.id = id, folder = %folder.display(), %error, "the work folder is not removed"
            );
        }
    }
}

/// Removes the work folders of jobs that have ended or are not known; returns how many.
pub(super) async fn remove_ended(context: &ExecutorContext) -> Result<u64, ExecutorError> {
    let mut removed = 0;
    // Only folders that the executor made: their names are job ids.
    for job_id in names(context, JOB_PREFIX).await? {
        let is_wanted =
            context.store.job(&job_id).await?.is_some_and(|job| !job.status.is_terminal());
        if !is_wanted {
            remove(context, &job_id).await;
            removed += 1;
        }
    }
    Ok(removed)
}

/// Removes the work folders of dry runs of an earlier server, at start-up alone; returns how many.
pub(super) async fn remove_dry_runs(context: &ExecutorContext) -> Result<u64, ExecutorError> {
    let names = names(context, DRY_RUN_PREFIX).await?;
    for name in &names {
        remove(context, name).await;
    }
    Ok(names.len() as u64)
}

/// Names of work folders that begin with `prefix`.
async fn names(context: &ExecutorContext, prefix: &str) -> Result<Vec<String>, ExecutorError> {
    let failed =
        |source| ExecutorError::WorkFolder { path: context.work_dir.display().to_string(), source };
    let mut names = Vec::new();
    let mut entries = tokio::fs::read_dir(&context.work_dir).await.map_err(failed)?;
    while let Some(entry) = entries.next_entry().await.map_err(failed)? {
        let name = entry.file_name();
        names.extend(name.to_str().filter(|name| name.starts_with(prefix)).map(str::to_owned));
    }
    Ok(names)
}
