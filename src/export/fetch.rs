//! Finds a fine-tuned model, fetches its files from the blobs into a folder, and exports it there in the
//! requested format.

use std::io;
use std::path::{Path, PathBuf};

use tokio::sync::Semaphore;

use super::base_name;
use super::error::ExportError;
use super::format::{ExportFormat, ExportOptions};
use super::opened_model::OpenedModel;
use crate::artifacts::certificate;
use crate::artifacts::model::WeightType;
use crate::base_models::SharedCatalog;
use crate::blobs::{BlobError, Blobs};
use crate::domain::file::FileRecord;
use crate::domain::model::TunedModel;
use crate::store::{Store, StoreError};

/// Conversions at the same time: each takes the memory of its largest tensors. Exports that need no conversion
/// do not wait.
static CONVERSIONS: Semaphore = Semaphore::const_new(1);

/// Why a model cannot be fetched or exported.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The blobs failed.
    #[error(transparent)]
    Blobs(#[from] BlobError),
    /// The models folder, or the target folder.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// A file of the model is not in the store any more.
    #[error("the file {file} of {model:?} is gone")]
    MissingFile {
        /// Its id.
        file: String,
        /// The model.
        model: String,
    },
    /// The base model of an adapter is missing.
    #[error("the base model {0:?} is not in the models folder: bring it again")]
    MissingBaseModel(String),
    /// The export failed.
    #[error(transparent)]
    Export(#[from] ExportError),
}

/// Where models, their files and their bases are.
#[derive(Clone, Copy)]
pub struct ExportSources<'a> {
    /// The store.
    pub store: &'a dyn Store,
    /// The blobs.
    pub blobs: &'a Blobs,
    /// The base models.
    pub base_models: &'a SharedCatalog,
}

/// The model of a job, or the model or checkpoint with that name.
pub async fn find(store: &dyn Store, job_or_name: &str) -> Result<Option<TunedModel>, StoreError> {
    match store.job(job_or_name).await? {
        Some(job) => store.model(&job.model_name()).await,
        None => store.model(job_or_name).await,
    }
}

/// An export.
pub struct Exported {
    /// The folder with the files of the format and nothing else.
    pub folder: PathBuf,
    /// What whoever takes the files should know, a sentence each.
    pub remarks: Vec<String>,
}

/// Exports `model` into a new folder below `work`, which must exist and be empty.
pub async fn export(
    sources: ExportSources<'_>,
    model: &TunedModel,
    options: &ExportOptions,
    work: &Path,
) -> Result<Exported, FetchError> {
    let format = options.format;
    let (fetched, exported) = (work.join("fetched"), work.join("exported"));
    tokio::fs::create_dir(&exported).await?;
    // The job has published this format already, and its certificate covers these bytes.
    if is_published(model, options) {
        fetch_files(sources.store, sources.blobs, model, &exported).await?;
        if let Some(file) = certificate_of(sources.store, model).await? {
            sources.blobs.fetch_to(&file.blob_key, &exported.join(certificate::FILE_NAME)).await?;
        }
        let mut remarks = Vec::new();
        if !model.is_whole {
            let mut name = options.base_model_name.clone();
            if name.is_none() {
                let entry = sources.base_models.find(&model.base_model).await?;
                name = match entry {
                    Some(entry) => sources.base_models.hub_name(entry).await,
                    None => None,
                };
            }
            remarks = base_name::write(&exported, name.as_deref())?;
        }
        return Ok(Exported { folder: exported, remarks });
    }
    if model.is_whole && !format.is_whole() {
        return Err(ExportError::no_adapter(&model.id, format).into());
    }
    let mut base = fetched.clone();
    let mut adapter = None;
    if !model.is_whole {
        let entry = sources.base_models.find(&model.base_model).await?;
        let entry = entry.ok_or_else(|| FetchError::MissingBaseModel(model.base_model.clone()))?;
        (base, adapter) = (entry.path, Some(fetched.clone()));
    }
    tokio::fs::create_dir(&fetched).await?;
    fetch_files(sources.store, sources.blobs, model, &fetched).await?;
    let (name, folder, options) = (model.id.clone(), exported.clone(), options.clone());
    let _permit = CONVERSIONS.acquire().await.map_err(io::Error::other)?;
    let written = tokio::task::spawn_blocking(move || {
        let model = OpenedModel::open(&name, &base, adapter.as_deref())?;
        super::write(&model, &options, &folder)
    });
    let remarks = written.await.unwrap_or_else(|panic| Err(ExportError::Io(panic.into())))?;
    tokio::fs::remove_dir_all(&fetched).await?;
    Ok(Exported { folder: exported, remarks })
}

/// Whether the job has published what is requested: an adapter, or a whole model in 32-bit floats.
fn is_published(model: &TunedModel, options: &ExportOptions) -> bool {
    if !model.is_whole {
        return options.format == ExportFormat::Peft;
    }
    let weight_type = options.weight_type.unwrap_or(WeightType::Float32);
    options.format == ExportFormat::Merged && weight_type == WeightType::Float32
}

/// Fetches the files of `model`, as its job published them, into `folder`.
pub async fn fetch_files(
    store: &dyn Store,
    blobs: &Blobs,
    model: &TunedModel,
    folder: &Path,
) -> Result<(), FetchError> {
    for id in model.files() {
        let Some(file) = store.file(id).await? else {
            let (file, model) = (id.clone(), model.id.clone());
            return Err(FetchError::MissingFile { file, model });
        };
        // The name is safe: the executor chose it when it published the file.
        blobs.fetch_to(&file.blob_key, &folder.join(&file.filename)).await?;
    }
    Ok(())
}

/// The certificate of a finished model. Checkpoints have none.
async fn certificate_of(
    store: &dyn Store,
    model: &TunedModel,
) -> Result<Option<FileRecord>, StoreError> {
    if model.is_checkpoint {
        return Ok(None);
    }
    let Some(job) = store.job(&model.job_id).await? else { return Ok(None) };
    for id in job.result_files.iter().rev() {
        let file = store.file(id).await?;
        if let Some(file) = file.filter(|file| file.filename == certificate::FILE_NAME) {
            return Ok(Some(file));
        }
    }
    Ok(None)
}
