//! The work folder of a job: its data beside the trainer's own folder, on a local disk.

use std::path::{Path, PathBuf};

use super::ending::Ending;
use super::{ExecutorError, Tools};
use crate::base_models::BaseModelEntry;
use crate::blobs::BlobError;
use crate::domain::error_code::ErrorCode;
use crate::domain::file::FileRecord;
use crate::domain::job::{DataFile, Job};
use crate::domain::model::TunedModel;
use crate::store::StoreError;
use crate::train::protocol::RunSpec;

/// How the name of a dry run's work folder begins.
pub(super) const DRY_RUN_PREFIX: &str = "dry-run-";

/// Puts everything into place that the trainer needs, and says where it is. What cannot be put
/// into place ends the job, or its attempt.
pub(super) async fn stage(tools: &Tools, job: &Job) -> Result<RunSpec, Ending> {
    let folder = folder(tools, &job.id);
    let work_dir = folder.join("run");
    make_folder(job, &work_dir).await?;
    let training_file = folder.join("training.jsonl");
    fetch(tools, job, &job.training_file, DataFile::Training, &training_file).await?;
    let mut validation_file = None;
    if let Some(file_id) = &job.validation_file {
        let to = folder.join("validation.jsonl");
        fetch(tools, job, file_id, DataFile::Validation, &to).await?;
        validation_file = Some(to);
    }
    let start = match &job.continue_from {
        Some(model) => Some(fetch_model(tools, job, model, &folder).await?),
        None => None,
    };
    // A whole model stands in the place of the base; an adapter stands beside it.
    let (base_model, continue_from) = match start {
        Some((model, start)) if model.is_whole => (start, None),
        start => (find_base_model(tools, job)?, start.map(|(_, folder)| folder)),
    };
    Ok(RunSpec {
        base_model,
        base_model_id: job.model.clone(),
        continue_from,
        training_file,
        validation_file,
        work_dir,
        seed: job.seed,
        hyperparameters: job.hyperparameters.clone(),
    })
}

async fn make_folder(job: &Job, path: &Path) -> Result<(), Ending> {
    tokio::fs::create_dir_all(path).await.map_err(|error| {
        let what = format!("the work folder {} cannot be made: {error}", path.display());
        Ending::broken(job, local_code(&error), &what, None)
    })
}

/// Removes a job's work folder. What cannot be removed now is tried again by
/// `housekeeping`.
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

/// Removes the work folders of jobs that have ended, or are not known, and says how many.
pub(super) async fn remove_ended(tools: &Tools) -> Result<u64, ExecutorError> {
    let mut removed = 0;
    // Only folders that we made: their names are job ids.
    for job_id in names_in(tools, "ftjob-").await? {
        let is_wanted =
            tools.store.job(&job_id).await?.is_some_and(|job| !job.status.is_terminal());
        if !is_wanted {
            remove(tools, &job_id).await;
            removed += 1;
        }
    }
    Ok(removed)
}

/// Removes what dry runs of an earlier server left, and says how many; at the start alone.
pub(super) async fn remove_previews(tools: &Tools) -> Result<u64, ExecutorError> {
    let names = names_in(tools, DRY_RUN_PREFIX).await?;
    for name in &names {
        remove(tools, name).await;
    }
    Ok(names.len() as u64)
}

/// Names of work folders that begin like this.
async fn names_in(tools: &Tools, prefix: &str) -> Result<Vec<String>, ExecutorError> {
    let failed =
        |source| ExecutorError::WorkFolder { path: tools.work_dir.display().to_string(), source };
    let mut names = Vec::new();
    let mut entries = tokio::fs::read_dir(&tools.work_dir).await.map_err(failed)?;
    while let Some(entry) = entries.next_entry().await.map_err(failed)? {
        let name = entry.file_name();
        names.extend(name.to_str().filter(|name| name.starts_with(prefix)).map(str::to_owned));
    }
    Ok(names)
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

/// Puts the files of the model that the job continues from into a folder of its own.
async fn fetch_model(
    tools: &Tools,
    job: &Job,
    model: &str,
    folder: &Path,
) -> Result<(TunedModel, PathBuf), Ending> {
    let gone = || {
        let message = format!("the model {model:?}, which the job continues from, is gone");
        Ending::failed(ErrorCode::ModelNotFound, message, Some("model"))
    };
    let tuned =
        tools.store.model(model).await.map_err(|error| lookup_failed(job, model, &error))?;
    let Some(tuned) = tuned else { return Err(gone()) };
    let to = folder.join("start");
    make_folder(job, &to).await?;
    for file_id in tuned.files() {
        let file = tools.store.file(file_id).await;
        let file = file.map_err(|error| lookup_failed(job, file_id, &error))?;
        let Some(file) = file else { return Err(gone()) };
        // The name is one that we gave it when it was published.
        fetch_blob(tools, job, &file, &to.join(&file.filename), gone).await?;
    }
    Ok((tuned, to))
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
    let file = tools.store.file(file_id).await;
    match file.map_err(|error| lookup_failed(job, file_id, &error))? {
        Some(file) => fetch_blob(tools, job, &file, to, gone).await,
        None => Err(gone()),
    }
}

fn lookup_failed(job: &Job, id: &str, error: &StoreError) -> Ending {
    if let StoreError::LostClaim(_) = error {
        return Ending::Lost;
    }
    let what = format!("{id} cannot be looked up: {error}");
    Ending::broken(job, ErrorCode::InternalError, &what, None)
}

/// Fetches the bytes of `file`, unless an earlier attempt has.
async fn fetch_blob(
    tools: &Tools,
    job: &Job,
    file: &FileRecord,
    to: &Path,
    gone: impl Fn() -> Ending,
) -> Result<(), Ending> {
    // A file appears whole, so one of the right size was fetched by an earlier attempt.
    let there = tokio::fs::metadata(to).await.map(|metadata| metadata.len());
    if there.is_ok_and(|length| i64::try_from(length) == Ok(file.bytes)) {
        return Ok(());
    }
    match tools.blobs.fetch_to(&file.blob_key, to).await {
        Ok(()) => Ok(()),
        Err(BlobError::NotFound(_)) => Err(gone()),
        Err(error) => {
            let what = format!("the file {} cannot be fetched: {error}", file.id);
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
