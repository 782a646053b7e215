//! Puts the files that a trainer needs into a job's work folder, on a local disk.

use std::path::{Path, PathBuf};

use super::context::ExecutorContext;
use super::work_folder;
use crate::base_models::BaseModelEntry;
use crate::blobs::BlobError;
use crate::domain::error_code::ErrorCode;
use crate::domain::file::FileRecord;
use crate::domain::job::{DataFile, Job, JobError};
use crate::domain::model::TunedModel;
use crate::store::StoreError;
use crate::train::protocol::RunSpec;
use crate::util::fail_point::FailPoint;
use crate::util::shortage;

/// Why a job's files could not be staged.
#[derive(Debug)]
pub(super) enum StagingError {
    /// Something that the job names is gone: another attempt would not help.
    Permanent(JobError),
    /// The store, the blobs or the disk failed: another attempt may help.
    Transient {
        /// The code of the job, when it has no attempts left.
        code: ErrorCode,
        /// What happened.
        reason: String,
        /// Whether others hold what it lacked: it is waited for.
        is_shortage: bool,
    },
}

impl StagingError {
    fn gone(code: ErrorCode, message: String, param: &str) -> Self {
        Self::Permanent(JobError { code, message, param: Some(param.to_owned()) })
    }

    fn lookup(id: &str, error: &StoreError) -> Self {
        let reason = format!("{id} cannot be looked up: {error}");
        // A store that fails does so for all jobs, and is no fault of this one.
        let is_shortage = matches!(error, StoreError::Database(_) | StoreError::Full);
        Self::Transient { code: ErrorCode::InternalError, reason, is_shortage }
    }

    fn local(error: &std::io::Error, reason: String) -> Self {
        let is_shortage = shortage::of_io(error).is_some();
        Self::Transient { code: local_code(error), reason, is_shortage }
    }
}

/// Stages everything that the trainer needs, and says where it is.
pub(super) async fn stage(context: &ExecutorContext, job: &Job) -> Result<RunSpec, StagingError> {
    let staging = Staging { context, job, folder: work_folder::path(context, &job.id) };
    staging.run().await
}

/// The public code of a failure of blobs.
pub(super) fn blob_code(error: &BlobError) -> ErrorCode {
    match error {
        BlobError::Full => ErrorCode::InsufficientStorage,
        BlobError::Local { source, .. } => local_code(source),
        BlobError::NotFound(_) | BlobError::Storage(_) => ErrorCode::InternalError,
    }
}

/// Whether blobs failed because others hold what they lacked.
pub(super) fn is_blob_shortage(error: &BlobError) -> bool {
    match error {
        BlobError::Full => true,
        BlobError::NotFound(_) => false,
        BlobError::Storage(error) => shortage::of(error).is_some(),
        BlobError::Local { source, .. } => shortage::of_io(source).is_some(),
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

async fn make_folder(path: &Path) -> Result<(), StagingError> {
    tokio::fs::create_dir_all(path).await.map_err(|error| {
        tracing::error!(folder = %path.display(), %error, "a work folder cannot be made");
        let reason = format!("the job's work folder cannot be made: {error}");
        StagingError::local(&error, reason)
    })
}

/// The staging of one job.
struct Staging<'a> {
    context: &'a ExecutorContext,
    job: &'a Job,
    /// The job's work folder.
    folder: PathBuf,
}

impl Staging<'_> {
    async fn run(&self) -> Result<RunSpec, StagingError> {
        let Self { job, folder, .. } = self;
        let work_dir = folder.join("run");
        make_folder(&work_dir).await?;
        let training_file = folder.join("training.jsonl");
        self.data_file(&job.training_file, DataFile::Training, &training_file).await?;
        let mut validation_file = None;
        if let Some(file_id) = &job.validation_file {
            let to = folder.join("validation.jsonl");
            self.data_file(file_id, DataFile::Validation, &to).await?;
            validation_file = Some(to);
        }
        let start = match &job.continue_from {
            Some(model) => Some(self.model(model).await?),
            None => None,
        };
        // A whole model takes the place of the base model; an adapter is loaded beside it.
        let (base_model, continue_from) = match start {
            Some((model, start)) if model.is_whole => (start, None),
            start => (self.base_model().await?, start.map(|(_, folder)| folder)),
        };
        FailPoint::Staged.reach_async().await.map_err(|error| {
            StagingError::local(&error, format!("the files could not be staged: {error}"))
        })?;
        Ok(RunSpec {
            base_model,
            base_model_id: job.model.clone(),
            continue_from,
            training_file,
            validation_file,
            work_dir,
            seed: job.seed,
            hyperparameters: job.hyperparameters.clone(),
            chat_template: job.chat_template.clone(),
            training_date: job.training_date(),
        })
    }

    /// Finds the base model, which stays in its own folder.
    async fn base_model(&self) -> Result<PathBuf, StagingError> {
        let model = &self.job.model;
        let found = match self.context.base_models.find(model).await {
            Ok(Some(BaseModelEntry { path, .. })) => std::path::absolute(path),
            Ok(None) => {
                let message = format!(
                    "the base model {model:?} is no longer in the models folder; put it back with \
                     `hone models pull {model}` and create the job again"
                );
                return Err(StagingError::gone(ErrorCode::ModelNotFound, message, "model"));
            }
            Err(error) => Err(error),
        };
        found.map_err(|error| {
            StagingError::local(&error, format!("the models folder cannot be read: {error}"))
        })
    }

    /// Puts the files of the model that the job continues from into a folder of their own.
    async fn model(&self, name: &str) -> Result<(TunedModel, PathBuf), StagingError> {
        let gone = || {
            let message = format!("the model {name:?}, which the job continues from, is gone");
            StagingError::gone(ErrorCode::ModelNotFound, message, "model")
        };
        let store = &self.context.store;
        let model = store.model(name).await.map_err(|error| StagingError::lookup(name, &error))?;
        let Some(model) = model else { return Err(gone()) };
        let to = self.folder.join("start");
        make_folder(&to).await?;
        for file_id in model.files() {
            let file = store.file(file_id).await;
            let file = file.map_err(|error| StagingError::lookup(file_id, &error))?;
            let Some(file) = file else { return Err(gone()) };
            // The executor chose the name when it published the file.
            self.blob(&file, &to.join(&file.filename), gone).await?;
        }
        Ok((model, to))
    }

    /// Puts a file of the job's data at `to`.
    async fn data_file(
        &self,
        file_id: &str,
        which: DataFile,
        to: &Path,
    ) -> Result<(), StagingError> {
        let gone = || {
            let message = format!("{}: the file {file_id} is gone; upload it again", which.param());
            StagingError::gone(which.code(), message, which.param())
        };
        let file = self.context.store.file(file_id).await;
        match file.map_err(|error| StagingError::lookup(file_id, &error))? {
            Some(file) => self.blob(&file, to, gone).await,
            None => Err(gone()),
        }
    }

    /// Fetches the bytes of `file`, unless an earlier attempt has.
    async fn blob(
        &self,
        file: &FileRecord,
        to: &Path,
        gone: impl Fn() -> StagingError,
    ) -> Result<(), StagingError> {
        // A file appears whole, so one of the right size was fetched by an earlier attempt.
        let there = tokio::fs::metadata(to).await.map(|metadata| metadata.len());
        if there.is_ok_and(|length| i64::try_from(length) == Ok(file.bytes)) {
            return Ok(());
        }
        match self.context.blobs.fetch_to(&file.blob_key, to).await {
            Ok(()) => Ok(()),
            Err(BlobError::NotFound(_)) => Err(gone()),
            Err(error) => Err(StagingError::Transient {
                code: blob_code(&error),
                reason: format!("the file {} cannot be fetched: {error}", file.id),
                is_shortage: is_blob_shortage(&error),
            }),
        }
    }
}
