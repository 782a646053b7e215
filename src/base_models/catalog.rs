//! Which base models there are.

use std::path::PathBuf;

/// A base model that can be trained and asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseModelEntry {
    /// The name by which clients call it: the folder's name, or the file's without `.gguf`.
    pub id: String,
    /// The folder (Hugging Face layout) or the `.gguf` file.
    pub path: PathBuf,
    /// When it was put there, in Unix seconds.
    pub created_at: i64,
}

/// The base models under one folder. Looks at the disk each time, so that a model that is pulled
/// while the server runs is there at once.
#[derive(Debug, Clone)]
pub struct Catalog {
    _models_dir: PathBuf,
}

impl Catalog {
    /// The base models under `models_dir`; a folder that does not exist holds none.
    pub fn new(models_dir: PathBuf) -> Self {
        Self { _models_dir: models_dir }
    }

    /// All of them, by id.
    pub fn list(&self) -> std::io::Result<Vec<BaseModelEntry>> {
        todo!()
    }

    /// The one called `id`. The id is compared with the list and never used as a path.
    pub fn find(&self, _id: &str) -> std::io::Result<Option<BaseModelEntry>> {
        todo!()
    }
}
