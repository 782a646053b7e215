//! Finds a fine-tuned model, brings its files from the blobs into a folder, and puts it there in the
//! format that is asked for.

use std::io;
use std::path::{Path, PathBuf};

use tokio::sync::Semaphore;

use super::{ExportError, Format, Quantization, Tuned};
use crate::artifacts::certificate;
use crate::base_models::Catalog;
use crate::blobs::{BlobError, Blobs};
use crate::domain::file::FileRecord;
use crate::domain::model::TunedModel;
use crate::store::{Store, StoreError};

/// Models that are written in another format at the same time: each takes the memory of its largest
/// tensors. What is there already is handed out meanwhile.
static WRITING: Semaphore = Semaphore::const_new(1);

/// Why a model is not handed out.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The blobs failed.
    #[error(transparent)]
    Blobs(#[from] BlobError),
    /// The models folder, or the folder that the files go to.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// A file of the model is not in the store any more.
    #[error("the file {file} of {model:?} is gone")]
    FileIsGone {
        /// Its id.
        file: String,
        /// Whose it is.
        model: String,
    },
    /// The base model that an adapter needs.
    #[error("the base model {0:?} is not in the models folder: bring it again")]
    BaseIsGone(String),
    /// The format.
    #[error(transparent)]
    Export(#[from] ExportError),
}

/// Where models, their files and their bases are.
#[derive(Clone, Copy)]
pub struct Sources<'a> {
    /// What the product remembers.
    pub store: &'a dyn Store,
    /// Big bytes.
    pub blobs: &'a Blobs,
    /// Which base models there are.
    pub base_models: &'a Catalog,
}

/// The model that a job made, or the model or checkpoint of that name.
pub async fn find(store: &dyn Store, job_or_name: &str) -> Result<Option<TunedModel>, StoreError> {
    match store.job(job_or_name).await? {
        Some(job) => store.model(&job.model_name()).await,
        None => store.model(job_or_name).await,
    }
}

/// Puts `model` in a format into a folder below `work`, which is there and empty; that folder, which
/// holds the format's files and nothing else.
pub async fn export(
    sources: Sources<'_>,
    model: &TunedModel,
    format: Format,
    quantization: Quantization,
    work: &Path,
) -> Result<PathBuf, FetchError> {
    let (fetched, made) = (work.join("fetched"), work.join("made"));
    tokio::fs::create_dir(&made).await?;
    // What a job leaves is in this format already, and its certificate is of these very bytes.
    if format == model_format(model) {
        bring(sources.store, sources.blobs, model, &made).await?;
        if let Some(file) = certificate_of(sources.store, model).await? {
            sources.blobs.fetch_to(&file.blob_key, &made.join(certificate::FILE_NAME)).await?;
        }
        return Ok(made);
    }
    if model.is_whole && !format.is_whole() {
        return Err(ExportError::no_adapter(&model.id, format).into());
    }
    let mut base = fetched.clone();
    let mut adapter = None;
    if !model.is_whole {
        let found = sources.base_models.find(&model.base_model)?;
        let found = found.ok_or_else(|| FetchError::BaseIsGone(model.base_model.clone()))?;
        (base, adapter) = (found.path, Some(fetched.clone()));
    }
    tokio::fs::create_dir(&fetched).await?;
    bring(sources.store, sources.blobs, model, &fetched).await?;
    let (name, folder) = (model.id.clone(), made.clone());
    let _turn = WRITING.acquire().await.map_err(io::Error::other)?;
    let written = tokio::task::spawn_blocking(move || {
        let tuned = Tuned::open(&name, &base, adapter.as_deref())?;
        super::write(&tuned, format, quantization, &folder)
    });
    written.await.unwrap_or_else(|panic| Err(ExportError::Io(panic.into())))?;
    tokio::fs::remove_dir_all(&fetched).await?;
    Ok(made)
}

/// The format in which a job left a model.
fn model_format(model: &TunedModel) -> Format {
    if model.is_whole { Format::Merged } else { Format::Peft }
}

/// Brings the files of `model`, as its job left them, into `folder`.
pub async fn bring(
    store: &dyn Store,
    blobs: &Blobs,
    model: &TunedModel,
    folder: &Path,
) -> Result<(), FetchError> {
    for id in model.files() {
        let Some(file) = store.file(id).await? else {
            let (file, model) = (id.clone(), model.id.clone());
            return Err(FetchError::FileIsGone { file, model });
        };
        // The name is one that we gave it when it was published.
        blobs.fetch_to(&file.blob_key, &folder.join(&file.filename)).await?;
    }
    Ok(())
}

/// The certificate of a finished model; checkpoints have none.
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
