//! What a trainer leaves on the disk, as blobs and rows. Blobs come first: a row never names bytes
//! that are not there.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::Tools;
use crate::artifacts::metrics_csv;
use crate::artifacts::peft::{CONFIG_FILE, WEIGHTS_FILE};
use crate::blobs::{BlobError, result_key};
use crate::file::{FilePurpose, FileRecord};
use crate::hex::hex;
use crate::ids;
use crate::job::{EventLevel, Job, JobCheckpoint, NewEvent, StepMetrics};
use crate::model::{TunedModel, checkpoint_name, tuned_model_name};
use crate::store::{Claim, StoreError, Success};
use crate::train::report;

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
    /// Holds the adapter.
    pub(super) adapter_directory: PathBuf,
    /// The results CSV.
    pub(super) metrics_csv: PathBuf,
    /// The report.
    pub(super) report: PathBuf,
    /// Optimiser steps done.
    pub(super) trained_steps: u64,
    /// Tokens trained.
    pub(super) trained_tokens: u64,
}

/// The name of the model that `job` makes, the same for every attempt.
pub(super) fn model_name(job: &Job) -> String {
    tuned_model_name(&job.model, job.suffix.as_deref(), &ids::model_suffix(&job.id))
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
    let name = checkpoint_name(&model_name(job), step);
    let files = adapter(tools, claim, directory, &format!("step-{step}")).await?;
    let [config, weights] = &files;
    let model = TunedModel {
        id: name.clone(),
        created_at: tools.clock.now(),
        base_model: job.model.clone(),
        job_id: job.id.clone(),
        adapter_config_file: config.id.clone(),
        adapter_weights_file: weights.id.clone(),
        is_checkpoint: true,
    };
    let row = JobCheckpoint {
        id: ids::new_checkpoint_id(),
        created_at: model.created_at,
        job_id: job.id.clone(),
        model_name: name.clone(),
        step,
        metrics: metrics.clone(),
        result_files: vec![config.id.clone(), weights.id.clone()],
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
    let csv = store_file(
        tools,
        claim,
        &finished.metrics_csv,
        metrics_csv::FILE_NAME,
        metrics_csv::FILE_NAME,
    )
    .await?;
    let [config, weights] = adapter(tools, claim, &finished.adapter_directory, "final").await?;
    let report =
        store_file(tools, claim, &finished.report, report::FILE_NAME, report::FILE_NAME).await?;
    let model = TunedModel {
        id: model_name(job),
        created_at: tools.clock.now(),
        base_model: job.model.clone(),
        job_id: job.id.clone(),
        adapter_config_file: config.id.clone(),
        adapter_weights_file: weights.id.clone(),
        is_checkpoint: false,
    };
    let events = vec![
        NewEvent::message(EventLevel::Info, format!("New fine-tuned model created: {}", model.id)),
        NewEvent::message(EventLevel::Info, "The job has successfully completed"),
    ];
    Ok(Success {
        model,
        result_files: [&csv, &config, &weights, &report].map(|file| file.id.clone()).to_vec(),
        files: vec![csv, config, weights, report],
        trained_tokens: i64::try_from(finished.trained_tokens).unwrap_or(i64::MAX),
        trained_steps: finished.trained_steps,
        events,
    })
}

/// Stores the two files of an adapter below `place`; its configuration comes first.
async fn adapter(
    tools: &Tools,
    claim: &Claim,
    directory: &Path,
    place: &str,
) -> Result<[FileRecord; 2], BlobError> {
    let config_key = format!("{place}/{CONFIG_FILE}");
    let config_path = directory.join(CONFIG_FILE);
    let config = store_file(tools, claim, &config_path, &config_key, CONFIG_FILE).await?;
    let weights_key = format!("{place}/{WEIGHTS_FILE}");
    let weights_path = directory.join(WEIGHTS_FILE);
    let weights = store_file(tools, claim, &weights_path, &weights_key, WEIGHTS_FILE).await?;
    Ok([config, weights])
}

/// Stores one file and makes its row.
async fn store_file(
    tools: &Tools,
    claim: &Claim,
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
