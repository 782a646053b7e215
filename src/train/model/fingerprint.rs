//! Whether the files of a model are those that were read: their lengths and times, which is cheap enough to
//! look at for every request.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::template_sources;

/// How names of files end that hold weights, or say where they are.
const WEIGHTS: &[&str] = &[".safetensors", ".bin", ".pt", ".pth", ".gguf", ".index.json"];

/// The state of a model's files, as far as hone reads them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fingerprint {
    /// Templates, tokenizer, configuration.
    texts: Vec<FileState>,
    weights: Vec<FileState>,
}

/// What identifies the bytes of a file as long as nobody sets its times by hand.
#[derive(Debug, Clone, PartialEq, Eq)]
struct FileState {
    path: PathBuf,
    /// Length and times; `None` where there is no such file.
    found: Option<[i64; 5]>,
}

impl Fingerprint {
    /// Of the model at `path`, a folder or a `.gguf` file, as it is now.
    pub fn of(path: &Path) -> Self {
        let states = |files: Vec<PathBuf>| -> Vec<FileState> {
            files.into_iter().map(FileState::of).collect()
        };
        if path.is_file() {
            return Self { texts: Vec::new(), weights: states(vec![path.to_owned()]) };
        }
        Self { texts: states(template_sources::files(path)), weights: states(weights(path)) }
    }

    /// Whether the weights are the same.
    pub fn has_weights_of(&self, other: &Self) -> bool {
        self.weights == other.weights
    }
}

/// The files of a folder that hold weights.
fn weights(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return Vec::new();
    };
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let is_weights = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        WEIGHTS.iter().any(|end| name.ends_with(end))
    };
    let mut paths: Vec<PathBuf> = paths.filter(is_weights).collect();
    paths.sort();
    paths
}

impl FileState {
    fn of(path: PathBuf) -> Self {
        let found = std::fs::metadata(&path).ok().map(|metadata| {
            [
                metadata.len() as i64,
                metadata.mtime(),
                metadata.mtime_nsec(),
                metadata.ctime(),
                metadata.ctime_nsec(),
            ]
        });
        Self { path, found }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fingerprint_changes_with_any_template_of_a_folder() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut last = Fingerprint::of(folder.path());
        assert_eq!(last, Fingerprint::of(folder.path()));
        std::fs::create_dir(folder.path().join("additional_chat_templates")).expect("is made");
        for (name, text) in [
            ("tokenizer_config.json", "{}"),
            ("chat_template.jinja", "a"),
            ("additional_chat_templates/tool_use.jinja", "b"),
            ("chat_template.jinja", "ab"),
        ] {
            std::fs::write(folder.path().join(name), text).expect("writes");
            let next = Fingerprint::of(folder.path());
            assert_ne!(last, next, "{name}");
            assert!(next.has_weights_of(&last), "{name}");
            last = next;
        }
        std::fs::remove_file(folder.path().join("chat_template.jinja")).expect("removes");
        let last = Fingerprint::of(folder.path());
        std::fs::write(folder.path().join("model.safetensors"), "c").expect("writes");
        assert!(!Fingerprint::of(folder.path()).has_weights_of(&last));
    }
}
