//! What a trainer leaves on the disk, as blobs and rows. Blobs come first: a row never names bytes
//! that are not there.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::Tools;
use crate::artifacts::{certificate, metrics_csv, model, peft};
use crate::blobs::{BlobError, result_key};
use crate::domain::file::{FilePurpose, FileRecord};
use crate::domain::ids;
use crate::domain::job::{EventLevel, Job, JobCheckpoint, NewEvent, StepMetrics};
use crate::domain::model::{TunedModel, checkpoint_name};
use crate::domain::project::Project;
use crate::store::{Claim, StoreError, Success};
use crate::train::run::report;
use crate::util::hex::hex;

/// Why a result could not be published.
#[derive(Debug, thiserror::Error)]
pub(super) enum PublishError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The blobs failed.
    #[error(transparent)]
    Blobs(#[from] BlobError),
}

/// What the trainer says when it is done.
pub(super) struct Finished {
    /// The checkpoint that is the result.
    pub(super) directory: PathBuf,
    /// The results CSV.
    pub(super) metrics_csv: PathBuf,
    /// The report.
    pub(super) report: PathBuf,
    /// The certificate.
    pub(super) certificate: PathBuf,
    /// Optimiser steps done.
    pub(super) trained_steps: u64,
    /// Tokens trained.
    pub(super) trained_tokens: u64,
}

/// Publishes a checkpoint. One that an earlier attempt has published stays as it is.
pub(super) async fn checkpoint(
    tools: &Tools,
    claim: &Claim,
    job: &Job,
    metrics: &StepMetrics,
    directory: &Path,
) -> Result<(), PublishError> {
    let step = metrics.step;
    let name = checkpoint_name(&job.model_name(), step);
    let files = model_files(tools, claim, job, directory, &format!("step-{step}")).await?;
    let result_files: Vec<String> = files.iter().map(|file| file.id.clone()).collect();
    let model = tuned_model(tools, job, name.clone(), &result_files, true);
    let row = JobCheckpoint {
        id: ids::new_checkpoint_id(),
        created_at: model.created_at,
        job_id: job.id.clone(),
        model_name: name.clone(),
        step,
        metrics: metrics.clone(),
        result_files,
    };
    let event =
        NewEvent::message(EventLevel::Info, format!("Checkpoint created at step {step}: {name}"));
    let was_added = tools.store.add_checkpoint(claim, &row, &model, &files, &[event]).await?;
    if !was_added {
        for file in &files {
            tools.blobs.delete(&file.blob_key).await?;
        }
    }
    Ok(())
}

/// Takes back the checkpoints of `steps`: the row first, so that none names bytes that are gone.
pub(super) async fn take_back(
    tools: &Tools,
    claim: &Claim,
    steps: &[u64],
) -> Result<(), PublishError> {
    for step in steps {
        for blob_key in tools.store.remove_checkpoint(claim, *step).await? {
            tools.blobs.delete(&blob_key).await?;
        }
    }
    Ok(())
}

/// Stores the blobs of a finished run and makes the rows that will be written with them.
pub(super) async fn success(
    tools: &Tools,
    claim: &Claim,
    job: &Job,
    finished: &Finished,
) -> Result<Success, BlobError> {
    let store = async |path: &Path, name: &str| {
        store_file(tools, claim, &job.project, path, name, name).await
    };
    let csv = store(&finished.metrics_csv, metrics_csv::FILE_NAME).await?;
    let mut files = model_files(tools, claim, job, &finished.directory, "final").await?;
    let ids: Vec<String> = files.iter().map(|file| file.id.clone()).collect();
    let report = store(&finished.report, report::FILE_NAME).await?;
    let certificate = store(&finished.certificate, certificate::FILE_NAME).await?;
    let model = tuned_model(tools, job, job.model_name(), &ids, false);
    files.insert(0, csv);
    files.push(report);
    files.push(certificate);
    let events = vec![
        NewEvent::message(EventLevel::Info, format!("New fine-tuned model created: {}", model.id)),
        NewEvent::message(EventLevel::Info, "The job has successfully completed"),
    ];
    Ok(Success {
        model,
        result_files: files.iter().map(|file| file.id.clone()).collect(),
        files,
        trained_tokens: i64::try_from(finished.trained_tokens).unwrap_or(i64::MAX),
        trained_steps: finished.trained_steps,
        events,
    })
}

/// Stores the files of what a checkpoint holds for use below `place`: an adapter, or a whole model.
/// The configuration comes first, then the weights, then what else there is.
async fn model_files(
    tools: &Tools,
    claim: &Claim,
    job: &Job,
    directory: &Path,
    place: &str,
) -> Result<Vec<FileRecord>, BlobError> {
    let (folder, mut names) = match job.makes_whole_model() {
        false => (directory.to_owned(), vec![peft::CONFIG_FILE, peft::WEIGHTS_FILE]),
        true => (directory.join(model::FOLDER), vec![model::CONFIG_FILE, model::WEIGHTS_FILE]),
    };
    if job.makes_whole_model() {
        names.extend(model::COMPANIONS.iter().filter(|name| folder.join(name).is_file()));
    }
    let mut files = Vec::with_capacity(names.len());
    for name in names {
        let key = format!("{place}/{name}");
        files.push(store_file(tools, claim, &job.project, &folder.join(name), &key, name).await?);
    }
    Ok(files)
}

/// A model of `job` whose files are stored, in the order of [`model_files`].
fn tuned_model(
    tools: &Tools,
    job: &Job,
    id: String,
    files: &[String],
    is_checkpoint: bool,
) -> TunedModel {
    let file = |index: usize| files.get(index).cloned().unwrap_or_default();
    TunedModel {
        id,
        project: job.project.clone(),
        created_at: tools.clock.now(),
        base_model: job.model.clone(),
        job_id: job.id.clone(),
        is_whole: job.makes_whole_model(),
        config_file: file(0),
        weights_file: file(1),
        other_files: files.iter().skip(2).cloned().collect(),
        is_checkpoint,
    }
}

/// Stores one file and makes its row.
async fn store_file(
    tools: &Tools,
    claim: &Claim,
    project: &Project,
    path: &Path,
    key_name: &str,
    filename: &str,
) -> Result<FileRecord, BlobError> {
    let blob_key = result_key(&claim.job_id, claim.epoch, key_name);
    let local = |source| BlobError::Local { path: path.display().to_string(), source };
    let to_digest = path.to_owned();
    let sha256 = tokio::task::spawn_blocking(move || digest(&to_digest))
        .await
        .unwrap_or_else(|panic| Err(panic.into()))
        .map_err(local)?;
    let bytes = tools.blobs.put_file(&blob_key, path).await?;
    Ok(FileRecord {
        id: ids::new_file_id(),
        project: project.clone(),
        bytes: i64::try_from(bytes).map_err(|error| local(io::Error::other(error)))?,
        created_at: tools.clock.now(),
        expires_at: None,
        filename: filename.to_owned(),
        purpose: FilePurpose::FineTuneResults,
        sha256,
        blob_key,
        verdict: None,
    })
}

/// SHA-256 of a file, lower-case hex.
fn digest(path: &Path) -> io::Result<String> {
    let mut hasher = Sha256::new();
    let mut file = File::open(path)?;
    let mut chunk = vec![0; 64 * 1024];
    loop {
        let length = file.read(&mut chunk)?;
        if length == 0 {
            break;
        }
        hasher.update(&chunk[..length]);
    }
    Ok(hex(&hasher.finalize()))
}
