//! The catalog of base models: scans the models folder.
//!
//! Called by `http::models`, by job creation, by the executor and by `hone models`. An id from a client is only
//! compared with names that were read from the disk. It is never joined to a path.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use super::hub_record::hub_name;

/// A base model that can be trained and served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseModelEntry {
    /// The id that clients use: the name of the folder, or of the file without `.gguf`.
    pub id: String,
    /// The folder (Hugging Face layout) or the `.gguf` file.
    pub path: PathBuf,
    /// When it was put there, in Unix seconds.
    pub created_at: i64,
}

impl BaseModelEntry {
    /// Its repository on the Hugging Face Hub, if hone knows it.
    pub fn hub_name(&self) -> Option<String> {
        hub_name(&self.id, &self.path)
    }

    /// The format of its weights: `gguf` for a `.gguf` file; `safetensors`, or `pytorch` without those,
    /// for a folder in Hugging Face layout.
    pub fn kind(&self) -> &'static str {
        if is_gguf(&self.path) {
            return "gguf";
        }
        let mut files = fs::read_dir(&self.path).into_iter().flatten().flatten();
        let has_safetensors = files.any(|entry| ends_with(&entry.path(), &["safetensors"]));
        if has_safetensors { "safetensors" } else { "pytorch" }
    }
}

/// An entry of the models folder that is not a usable base model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SkippedEntry {
    /// Its path.
    pub path: PathBuf,
    /// Why it is not a base model.
    pub reason: String,
}

/// The result of a scan of the models folder.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CatalogScan {
    /// The base models, by id.
    pub models: Vec<BaseModelEntry>,
    /// Other entries, by path, without hidden ones and unfinished downloads.
    pub skipped: Vec<SkippedEntry>,
}

/// The base models in one folder. The folder is scanned at each call, so that a model pulled while the server runs
/// is available at once.
#[derive(Debug, Clone)]
pub struct Catalog {
    models_dir: PathBuf,
}

impl Catalog {
    /// The base models in `models_dir`. A folder that does not exist has none.
    pub fn new(models_dir: PathBuf) -> Self {
        Self { models_dir }
    }

    /// All base models, by id.
    ///
    /// # Errors
    /// When the models folder exists and cannot be read.
    pub fn list(&self) -> io::Result<Vec<BaseModelEntry>> {
        let scan = self.scan()?;
        // debug, because this runs at each request: `hone models list` shows the same lines
        for skipped in &scan.skipped {
            tracing::debug!(path = %skipped.path.display(), reason = %skipped.reason, "not a base model");
        }
        Ok(scan.models)
    }

    /// The base model `id`, or the only one whose repository on the Hub is called so. The id is compared with the
    /// list and never used as a path.
    ///
    /// # Errors
    /// When the models folder exists and cannot be read.
    pub fn find(&self, id: &str) -> io::Result<Option<BaseModelEntry>> {
        let list = self.list()?;
        if let Some(entry) = list.iter().find(|entry| entry.id == id) {
            return Ok(Some(entry.clone()));
        }
        Ok(if id.contains('/') { of_repository(list, id) } else { None })
    }

    /// The only base model in Hugging Face layout whose repository on the Hub has this name, `owner/name`.
    ///
    /// # Errors
    /// When the models folder exists and cannot be read.
    pub fn find_by_repository(&self, repository: &str) -> io::Result<Option<BaseModelEntry>> {
        let found = of_repository(self.list()?, repository);
        Ok(found.filter(|entry| !is_gguf(&entry.path)))
    }

    /// Scans the folder: the base models, and other entries with the reason why they are none.
    ///
    /// # Errors
    /// When the models folder exists and cannot be read.
    pub fn scan(&self) -> io::Result<CatalogScan> {
        let mut scan = CatalogScan::default();
        let entries = match fs::read_dir(&self.models_dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(scan),
            Err(error) => return Err(error),
        };
        let mut paths = Vec::new();
        for entry in entries {
            paths.push(entry?.path());
        }
        // by path, so that of a folder `a` and a file `a.gguf` the folder always wins
        paths.sort();
        for path in paths {
            let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
                scan.skipped
                    .push(SkippedEntry { path, reason: "its name is not UTF-8".to_owned() });
                continue;
            };
            if is_hidden_or_unfinished(name) {
                continue;
            }
            match read_entry(name, &path) {
                Ok(entry) if scan.models.iter().any(|other| other.id == entry.id) => {
                    let reason = format!("another base model is called {:?} already", entry.id);
                    scan.skipped.push(SkippedEntry { path, reason });
                }
                Ok(entry) => scan.models.push(entry),
                Err(reason) => scan.skipped.push(SkippedEntry { path, reason }),
            }
        }
        scan.models.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(scan)
    }
}

/// The only model of this repository, or the only one of several in the repository's own layout. The Hub takes no
/// account of capitals.
fn of_repository(mut list: Vec<BaseModelEntry>, repository: &str) -> Option<BaseModelEntry> {
    list.retain(|entry| entry.hub_name().is_some_and(|name| name.eq_ignore_ascii_case(repository)));
    if list.len() > 1 {
        list.retain(|entry| !is_gguf(&entry.path));
    }
    let only = list.pop();
    if list.is_empty() { only } else { None }
}

/// Downloads in progress have one of these endings, whichever program writes them.
fn is_hidden_or_unfinished(name: &str) -> bool {
    name.starts_with('.')
        || [".partial", ".part", ".incomplete", ".tmp"].iter().any(|end| name.ends_with(end))
}

/// Endings of the files that hold weights in a folder.
const WEIGHTS: &[&str] = &["safetensors", "bin", "pt", "pth"];

fn ends_with(path: &Path, endings: &[&str]) -> bool {
    path.extension()
        .and_then(|ending| ending.to_str())
        .is_some_and(|ending| endings.contains(&ending))
}

fn is_gguf(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"))
}

/// The base model at `path`, or why it is none.
fn read_entry(name: &str, path: &Path) -> Result<BaseModelEntry, String> {
    if name.contains(':') {
        return Err("a base model's name holds no `:`, which separates the parts of a fine-tuned \
                    model's name; rename it"
            .to_owned());
    }
    let metadata = fs::metadata(path).map_err(|error| format!("cannot be read: {error}"))?;
    if metadata.is_file() {
        if !is_gguf(path) {
            return Err("a file that is not a .gguf".to_owned());
        }
        // `name` ends in `.gguf` in some spelling of capitals: five characters
        let id = name[..name.len() - ".gguf".len()].to_owned();
        return Ok(BaseModelEntry { id, path: path.to_owned(), created_at: modified(&metadata) });
    }
    let path = model_in_folder(path)?;
    let metadata = fs::metadata(&path).map_err(|error| format!("cannot be read: {error}"))?;
    Ok(BaseModelEntry { id: name.to_owned(), path, created_at: modified(&metadata) })
}

/// The model of a folder: the folder itself in Hugging Face layout, otherwise the only `.gguf` file in it.
fn model_in_folder(folder: &Path) -> Result<PathBuf, String> {
    let unreadable = |error: io::Error| format!("cannot be read: {error}");
    let mut gguf_files = Vec::new();
    let mut has_weights = false;
    for entry in fs::read_dir(folder).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        if path.file_name().and_then(|name| name.to_str()).is_none_or(is_hidden_or_unfinished) {
            continue;
        }
        has_weights |= ends_with(&path, WEIGHTS);
        if is_gguf(&path) {
            gguf_files.push(path);
        }
    }
    if folder.join("config.json").is_file() && has_weights {
        if !folder.join("tokenizer.json").is_file() {
            return Err("a model folder without tokenizer.json".to_owned());
        }
        return Ok(folder.to_owned());
    }
    match gguf_files.len() {
        1 => Ok(gguf_files.remove(0)),
        0 => Err("a folder with neither config.json, weights (*.safetensors, or PyTorch's *.bin, \
                  *.pt or *.pth) and tokenizer.json, nor a .gguf file"
            .to_owned()),
        count => Err(format!("a folder with {count} .gguf files: it must hold one")),
    }
}

fn modified(metadata: &fs::Metadata) -> i64 {
    let since_epoch =
        metadata.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    since_epoch.map_or(0, |duration| i64::try_from(duration.as_secs()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touch(root: &Path, names: &[&str]) {
        for name in names {
            let path = root.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, b"x").unwrap();
        }
    }

    fn ids(scan: &CatalogScan) -> Vec<&str> {
        scan.models.iter().map(|entry| entry.id.as_str()).collect()
    }

    #[test]
    fn a_models_folder_that_does_not_exist_holds_no_models() {
        let root = tempfile::tempdir().unwrap();
        let catalog = Catalog::new(root.path().join("none"));
        assert_eq!(catalog.list().unwrap(), []);
        assert_eq!(catalog.find("any").unwrap(), None);
    }

    #[test]
    fn folders_in_hugging_face_layout_and_gguf_files_are_models() {
        let root = tempfile::tempdir().unwrap();
        touch(
            root.path(),
            &[
                "hf/config.json",
                "hf/model-00001-of-00002.safetensors",
                "hf/tokenizer.json",
                "torch/config.json",
                "torch/pytorch_model.bin",
                "torch/tokenizer.json",
                "in-folder/Some-Name.Q4.gguf",
                "in-folder/LICENSE",
                "bare.gguf",
                "SHOUT.GGUF",
            ],
        );
        let scan = Catalog::new(root.path().to_owned()).scan().unwrap();
        assert_eq!(ids(&scan), ["SHOUT", "bare", "hf", "in-folder", "torch"]);
        assert_eq!(scan.skipped, []);
        let path = |id: &str| scan.models.iter().find(|m| m.id == id).unwrap().path.clone();
        assert_eq!(path("hf"), root.path().join("hf"));
        assert_eq!(path("in-folder"), root.path().join("in-folder/Some-Name.Q4.gguf"));
        assert_eq!(path("bare"), root.path().join("bare.gguf"));
        let kinds: Vec<_> = scan.models.iter().map(BaseModelEntry::kind).collect();
        assert_eq!(kinds, ["gguf", "gguf", "safetensors", "gguf", "pytorch"]);
        assert!(scan.models.iter().all(|entry| entry.created_at > 1_600_000_000));
    }

    #[test]
    fn what_is_not_a_model_is_skipped_with_the_reason() {
        let root = tempfile::tempdir().unwrap();
        touch(
            root.path(),
            &[
                "notes.txt",
                "no-tokenizer/config.json",
                "no-tokenizer/model.safetensors",
                "no-weights/config.json",
                "no-weights/tokenizer.json",
                "two/a.gguf",
                "two/b.gguf",
                "ft:base:x.gguf",
                "same/model.gguf",
                "same.gguf",
            ],
        );
        let scan = Catalog::new(root.path().to_owned()).scan().unwrap();
        assert_eq!(ids(&scan), ["same"]);
        assert!(scan.models[0].path.ends_with("same/model.gguf"));
        let reason = |name: &str| {
            let path = root.path().join(name);
            scan.skipped.iter().find(|s| s.path == path).unwrap().reason.clone()
        };
        assert!(reason("notes.txt").contains("not a .gguf"));
        assert!(reason("no-tokenizer").contains("tokenizer.json"));
        assert!(reason("no-weights").contains("neither"));
        assert!(reason("two").contains("2 .gguf files"));
        assert!(reason("ft:base:x.gguf").contains("`:`"));
        assert!(reason("same.gguf").contains("already"));
    }

    #[test]
    fn hidden_and_unfinished_downloads_are_not_models() {
        let root = tempfile::tempdir().unwrap();
        touch(
            root.path(),
            &[
                ".hidden/model.gguf",
                "half.gguf.partial",
                "half.partial/model.gguf",
                "inside/model.gguf.part",
                "inside/.model.gguf",
            ],
        );
        let scan = Catalog::new(root.path().to_owned()).scan().unwrap();
        assert_eq!(ids(&scan), Vec::<&str>::new());
        assert_eq!(scan.skipped.len(), 1, "{scan:?}");
        assert!(scan.skipped[0].path.ends_with("inside"));
    }

    #[test]
    fn an_id_is_never_used_as_a_path() {
        let root = tempfile::tempdir().unwrap();
        touch(root.path(), &["models/good/model.gguf", "outside/model.gguf"]);
        let catalog = Catalog::new(root.path().join("models"));
        assert!(catalog.find("good").unwrap().is_some());
        for id in ["../outside", "good/../good", "./good", "good/", "", ".", "good/model"] {
            assert_eq!(catalog.find(id).unwrap(), None, "{id:?}");
        }
    }

    #[test]
    fn a_model_is_found_by_its_repository_where_only_one_is_of_it() {
        let root = tempfile::tempdir().unwrap();
        let files = ["config.json", "m.safetensors", "tokenizer.json"];
        for name in files {
            touch(root.path(), &[&format!("b/{name}")]);
        }
        touch(root.path(), &["a/m.gguf", "c/m.gguf"]);
        let catalog = Catalog::new(root.path().to_owned());
        let record = r#"{"repository": "Someone/Tiny"}"#;
        let found = |name: &str| catalog.find(name).unwrap().map(|entry| entry.id);
        assert_eq!(found("Someone/Tiny"), None);
        fs::write(root.path().join("a/hub.json"), record).unwrap();
        for name in ["Someone/Tiny", "someone/tiny", "a"] {
            assert_eq!(found(name).as_deref(), Some("a"), "{name}");
        }
        assert_eq!(found("Other/Tiny"), None);
        fs::write(root.path().join("c/hub.json"), record).unwrap();
        assert_eq!(found("Someone/Tiny"), None, "which one is not said");
        fs::write(root.path().join("b/hub.json"), record).unwrap();
        assert_eq!(found("Someone/Tiny").as_deref(), Some("b"), "the Hub has it in this layout");
        let pulled = catalog.find_by_repository("Someone/Tiny").unwrap().unwrap();
        assert_eq!(pulled.id, "b");
    }

    #[test]
    fn a_model_that_appears_later_is_found() {
        let root = tempfile::tempdir().unwrap();
        let catalog = Catalog::new(root.path().to_owned());
        assert_eq!(catalog.find("late").unwrap(), None);
        touch(root.path(), &["late/model.gguf"]);
        assert!(catalog.find("late").unwrap().is_some());
    }
}
