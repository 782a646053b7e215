//! The work folder of a job: its data beside the trainer's own folder, on a local disk.

use std::path::{Path, PathBuf};

use super::Tools;
use super::ending::Ending;
use crate::base_models::BaseModelEntry;
use crate::blobs::BlobError;
use crate::error_code::ErrorCode;
use crate::job::{DataFile, Job};
use crate::store::StoreError;
use crate::train::protocol::RunSpec;

/// Puts everything into place that the trainer needs, and says where it is. What cannot be put
/// into place ends the job, or its attempt.
pub(super) async fn stage(tools: &Tools, job: &Job) -> Result<RunSpec, Ending> {
    let base_model = find_base_model(tools, job)?;
    let folder = folder(tools, &job.id);
    let work_dir = folder.join("run");
    tokio::fs::create_dir_all(&work_dir).await.map_err(|error| {
        let what = format!("the work folder {} cannot be made: {error}", work_dir.display());
        Ending::broken(job, local_code(&error), &what, None)
    })?;
    let training_file = folder.join("training.jsonl");
    fetch(tools, job, &job.training_file, DataFile::Training, &training_file).await?;
    let mut validation_file = None;
    if let Some(file_id) = &job.validation_file {
        let to = folder.join("validation.jsonl");
        fetch(tools, job, file_id, DataFile::Validation, &to).await?;
        validation_file = Some(to);
    }
    Ok(RunSpec {
        base_model,
        base_model_id: job.model.clone(),
        training_file,
        validation_file,
        work_dir,
        seed: job.seed,
        hyperparameters: job.hyperparameters.clone(),
    })
}

/// Removes a job's work folder. What cannot be removed now is swept at the next start.
pub(super) async fn remove(tools: &Tools, job_id: &str) {
    let folder = folder(tools, job_id);
    match tokio::fs::remove_dir_all(&folder).await {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => {
            tracing::warn!(job.id = job_id, folder = %folder.display(), %error, "work folder stays");
        }
    }
}

fn folder(tools: &Tools, job_id: &str) -> PathBuf {
    tools.work_dir.join(job_id)
}

fn find_base_model(tools: &Tools, job: &Job) -> Result<PathBuf, Ending> {
    let found = match tools.base_models.find(&job.model) {
        Ok(Some(BaseModelEntry { path, .. })) => std::path::absolute(path),
        Ok(None) => {
            let message = format!(
                "the base model {:?} is no longer in the models folder; put it back with `hone \
                 models pull {0}` and create the job again",
                job.model
            );
            return Err(Ending::failed(ErrorCode::ModelNotFound, message, Some("model")));
        }
        Err(error) => Err(error),
    };
    found.map_err(|error| {
        let what = format!("the models folder cannot be read: {error}");
        Ending::broken(job, ErrorCode::InternalError, &what, None)
    })
}

async fn fetch(
    tools: &Tools,
    job: &Job,
    file_id: &str,
    role: DataFile,
    to: &Path,
) -> Result<(), Ending> {
    let gone = || {
        let message = format!("{}: the file {file_id} is gone; upload it again", role.param());
        Ending::failed(role.code(), message, Some(role.param()))
    };
    let file = match tools.store.file(file_id).await {
        Ok(Some(file)) => file,
        Ok(None) => return Err(gone()),
        Err(StoreError::LostClaim(_)) => return Err(Ending::Lost),
        Err(error) => {
            let what = format!("the file {file_id} cannot be looked up: {error}");
            return Err(Ending::broken(job, ErrorCode::InternalError, &what, None));
        }
    };
    // A file appears whole, so one of the right size was fetched by an earlier attempt.
    let there = tokio::fs::metadata(to).await.map(|metadata| metadata.len());
    if there.is_ok_and(|length| i64::try_from(length) == Ok(file.bytes)) {
        return Ok(());
    }
    match tools.blobs.fetch_to(&file.blob_key, to).await {
        Ok(()) => Ok(()),
        Err(BlobError::NotFound(_)) => Err(gone()),
        Err(error) => {
            let what = format!("the file {file_id} cannot be fetched: {error}");
            Err(Ending::broken(job, blob_code(&error), &what, None))
        }
    }
}

/// The public code of trouble with blobs.
pub(super) fn blob_code(error: &BlobError) -> ErrorCode {
    match error {
        BlobError::Full => ErrorCode::InsufficientStorage,
        BlobError::Local { source, .. } => local_code(source),
        BlobError::NotFound(_) | BlobError::Storage(_) => ErrorCode::InternalError,
    }
}

fn local_code(error: &std::io::Error) -> ErrorCode {
    match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
            ErrorCode::InsufficientStorage
        }
        _ => ErrorCode::InternalError,
    }
}
