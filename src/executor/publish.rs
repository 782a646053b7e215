//! Publishes what a trainer writes to the disk: as blobs, and as rows in the store. Blobs come first: a
//! row never names bytes that are not there.

use std::io;
use std::path::{Path, PathBuf};

use super::context::ExecutorContext;
use crate::artifacts::{certificate, metrics_csv, model, peft};
use crate::blobs::{BlobError, result_key};
use crate::domain::file::{FilePurpose, FileRecord};
use crate::domain::ids;
use crate::domain::job::{EventLevel, Job, JobCheckpoint, NewEvent, StepMetrics};
use crate::domain::model::{TunedModel, checkpoint_name};
use crate::store::{Claim, NewCheckpoint, StoreError, Success};
use crate::train::run::report;
use crate::util::fail_point::FailPoint;
use crate::util::file_digest::sha256_of_file;

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

/// What a finished run has written.
pub(super) struct RunOutput {
    /// Folder of the checkpoint that is the result.
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

/// Publishes the checkpoints and the result of one claimed job.
#[derive(Clone, Copy)]
pub(super) struct Publisher<'a> {
    pub(super) context: &'a ExecutorContext,
    pub(super) claim: &'a Claim,
    pub(super) job: &'a Job,
}

impl Publisher<'_> {
    /// Publishes a checkpoint. One that an earlier attempt has published stays as it is.
    pub(super) async fn checkpoint(
        &self,
        metrics: &StepMetrics,
        directory: &Path,
    ) -> Result<(), PublishError> {
        let Self { context, claim, job } = self;
        let step = metrics.step;
        let name = checkpoint_name(&job.model_name(), step);
        let files = self.store_model(directory, &format!("step-{step}")).await?;
        let result_files = ids_of(&files);
        let model = self.tuned_model(name.clone(), &result_files, true);
        let row = JobCheckpoint {
            id: ids::new_checkpoint_id(),
            created_at: model.created_at,
            job_id: job.id.clone(),
            model_name: name.clone(),
            step,
            metrics: metrics.clone(),
            result_files,
        };
        let message = format!("Checkpoint created at step {step}: {name}");
        let event = NewEvent::message(EventLevel::Info, message);
        let checkpoint =
            NewCheckpoint { checkpoint: &row, model: &model, files: &files, events: &[event] };
        let added = context.store.add_checkpoint(claim, &checkpoint).await;
        if !matches!(added, Ok(true)) {
            for file in &files {
                context.blobs.delete(&file.blob_key).await?;
            }
        }
        added?;
        reach(FailPoint::CheckpointPublished, directory).await?;
        Ok(())
    }

    /// Unpublishes the checkpoints up to the step `through` that are not of the `retained` steps: the rows
    /// first, so that none names bytes that are gone. Those that an earlier executor left are among them.
    pub(super) async fn retain(&self, retained: &[u64], through: u64) -> Result<(), PublishError> {
        let Self { context, claim, .. } = self;
        for blob_key in context.store.retain_checkpoints(claim, retained, through).await? {
            context.blobs.delete(&blob_key).await?;
        }
        Ok(())
    }

    /// Stores the blobs of a finished run and makes the rows that will be written with them.
    pub(super) async fn success(&self, output: &RunOutput) -> Result<Success, BlobError> {
        let csv = self.store_file(&output.metrics_csv, metrics_csv::FILE_NAME).await?;
        let mut files = self.store_model(&output.directory, "final").await?;
        let model = self.tuned_model(self.job.model_name(), &ids_of(&files), false);
        let report = self.store_file(&output.report, report::FILE_NAME).await?;
        let certificate = self.store_file(&output.certificate, certificate::FILE_NAME).await?;
        files.insert(0, csv);
        files.push(report);
        files.push(certificate);
        reach(FailPoint::ResultStored, &output.directory).await?;
        let created = format!("New fine-tuned model created: {}", model.id);
        let events = vec![
            NewEvent::message(EventLevel::Info, created),
            NewEvent::message(EventLevel::Info, "The job has successfully completed"),
        ];
        Ok(Success {
            model,
            result_files: ids_of(&files),
            files,
            trained_tokens: i64::try_from(output.trained_tokens).unwrap_or(i64::MAX),
            trained_steps: output.trained_steps,
            events,
        })
    }

    /// Stores the files of a checkpoint that are for use, an adapter or a whole model, below `prefix`.
    /// The configuration comes first, then the weights, then what else there is.
    async fn store_model(
        &self,
        directory: &Path,
        prefix: &str,
    ) -> Result<Vec<FileRecord>, BlobError> {
        let is_whole = self.job.makes_whole_model();
        let (folder, mut names) = match is_whole {
            false => (directory.to_owned(), vec![peft::CONFIG_FILE, peft::WEIGHTS_FILE]),
            true => (directory.join(model::FOLDER), vec![model::CONFIG_FILE, model::WEIGHTS_FILE]),
        };
        let others = if is_whole { model::COMPANIONS } else { peft::COMPANIONS };
        names.extend(others.iter().filter(|name| folder.join(name).is_file()));
        let mut files = Vec::with_capacity(names.len());
        for name in names {
            files.push(self.store_file(&folder.join(name), &format!("{prefix}/{name}")).await?);
        }
        Ok(files)
    }

    /// A model of the job whose files are stored, in the order of [`Self::store_model`].
    fn tuned_model(&self, id: String, files: &[String], is_checkpoint: bool) -> TunedModel {
        let file = |index: usize| files.get(index).cloned().unwrap_or_default();
        TunedModel {
            id,
            project: self.job.project.clone(),
            created_at: self.context.clock.now(),
            base_model: self.job.model.clone(),
            job_id: self.job.id.clone(),
            is_whole: self.job.makes_whole_model(),
            config_file: file(0),
            weights_file: file(1),
            other_files: files.iter().skip(2).cloned().collect(),
            is_checkpoint,
        }
    }

    /// Stores one file under `name` in the job's results and makes its row. The file is called as the
    /// last part of `name`.
    async fn store_file(&self, path: &Path, name: &str) -> Result<FileRecord, BlobError> {
        let blob_key = result_key(&self.claim.job_id, self.claim.epoch, name);
        let filename = name.rsplit('/').next().unwrap_or(name).to_owned();
        let local = |source| BlobError::local(path, source);
        let to_digest = path.to_owned();
        let sha256 = tokio::task::spawn_blocking(move || sha256_of_file(&to_digest))
            .await
            .unwrap_or_else(|panic| Err(panic.into()))
            .map_err(local)?;
        let bytes = self.context.blobs.put_file(&blob_key, path).await?;
        Ok(FileRecord {
            id: ids::new_file_id(),
            project: self.job.project.clone(),
            bytes: i64::try_from(bytes).map_err(|error| local(io::Error::other(error)))?,
            created_at: self.context.clock.now(),
            expires_at: None,
            filename,
            purpose: FilePurpose::FineTuneResults,
            sha256,
            blob_key,
            report: None,
        })
    }
}

/// Reaches a fail point. Its failure is reported as a failure to read the checkpoint's folder.
async fn reach(point: FailPoint, directory: &Path) -> Result<(), BlobError> {
    point.reach_async().await.map_err(|source| BlobError::local(directory, source))
}

fn ids_of(files: &[FileRecord]) -> Vec<String> {
    files.iter().map(|file| file.id.clone()).collect()
}
