//! The record of where a base model comes from: a small file in its folder, with the name of its repository on the
//! Hugging Face Hub. `hone models pull` writes it; whoever brings a model by hand may.

use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::known;
use crate::util::atomic_file;

/// Name of the file. It is no part of the model: the model's digest leaves it out.
pub const RECORD_FILE: &str = "hub.json";

/// Where a base model comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HubRecord {
    /// `owner/name`.
    pub repository: String,
    /// The commit of the repository, if it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
}

impl HubRecord {
    /// Writes it into a model's folder.
    pub(super) fn write(&self, folder: &Path) -> io::Result<()> {
        let mut text = serde_json::to_vec_pretty(self).map_err(io::Error::other)?;
        text.push(b'\n');
        atomic_file::write(&folder.join(RECORD_FILE), &text)
    }

    /// The record of a model, which is a folder or a `.gguf` file in a folder of its own. A record that cannot be
    /// read counts as none.
    fn read(model: &Path) -> Option<Self> {
        let folder = if model.is_dir() { model } else { model.parent()? };
        serde_json::from_slice(&std::fs::read(folder.join(RECORD_FILE)).ok()?).ok()
    }
}

/// The repository on the Hub of the base model `id` at this path, if hone knows it: by its record, or because
/// `hone models pull` knows the model by its name.
pub fn hub_name(id: &str, model: &Path) -> Option<String> {
    let recorded = HubRecord::read(model).map(|record| record.repository);
    recorded.or_else(|| Some(known::find(id)?.hub.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_repository_is_read_from_the_record_or_known_by_the_name() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(hub_name("mine", folder.path()), None);
        let known = hub_name("smollm2-135m-instruct", folder.path());
        assert_eq!(known.as_deref(), Some("HuggingFaceTB/SmolLM2-135M-Instruct"));
        let record = HubRecord { repository: "Someone/Mine".to_owned(), revision: None };
        record.write(folder.path()).unwrap();
        for path in [folder.path().to_owned(), folder.path().join("model.gguf")] {
            assert_eq!(hub_name("mine", &path).as_deref(), Some("Someone/Mine"));
        }
        std::fs::write(folder.path().join(RECORD_FILE), "not JSON").unwrap();
        assert_eq!(hub_name("mine", folder.path()), None);
    }
}
