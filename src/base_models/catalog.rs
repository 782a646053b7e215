//! Which base models there are: looks into the models folder and names what it finds.
//!
//! Called by `http::models`, by job creation, by the executor and by `hone models`. Promises that
//! an id from a client is only ever compared with names that were read from the disk: it is never
//! joined to a path.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

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

impl BaseModelEntry {
    /// What its weights are: `gguf` for a `.gguf` file; `safetensors`, or `pytorch` without those,
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

/// Something in the models folder that is not a usable base model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped {
    /// Where it lies.
    pub path: PathBuf,
    /// What keeps it from being a base model.
    pub reason: String,
}

/// What the models folder holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Survey {
    /// The base models, by id.
    pub models: Vec<BaseModelEntry>,
    /// The rest, by path; hidden entries and unfinished downloads are left out.
    pub skipped: Vec<Skipped>,
}

/// The base models under one folder. Looks at the disk each time, so that a model that is pulled
/// while the server runs is there at once.
#[derive(Debug, Clone)]
pub struct Catalog {
    models_dir: PathBuf,
}

impl Catalog {
    /// The base models under `models_dir`; a folder that does not exist holds none.
    pub fn new(models_dir: PathBuf) -> Self {
        Self { models_dir }
    }

    /// All of them, by id.
    ///
    /// # Errors
    /// When the models folder exists and cannot be read.
    pub fn list(&self) -> io::Result<Vec<BaseModelEntry>> {
        let survey = self.survey()?;
        // debug, because this runs at each request: `hone models list` shows the same lines
        for skipped in &survey.skipped {
            tracing::debug!(path = %skipped.path.display(), reason = %skipped.reason, "not a base model");
        }
        Ok(survey.models)
    }

    /// The one called `id`. The id is compared with the list and never used as a path.
    ///
    /// # Errors
    /// When the models folder exists and cannot be read.
    pub fn find(&self, id: &str) -> io::Result<Option<BaseModelEntry>> {
        Ok(self.list()?.into_iter().find(|entry| entry.id == id))
    }

    /// The base models, and what else lies there with the reason why it is none.
    ///
    /// # Errors
    /// When the models folder exists and cannot be read.
    pub fn survey(&self) -> io::Result<Survey> {
        let mut survey = Survey::default();
        let entries = match fs::read_dir(&self.models_dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(survey),
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
                survey.skipped.push(Skipped { path, reason: "its name is not UTF-8".to_owned() });
                continue;
            };
            if is_hidden_or_unfinished(name) {
                continue;
            }
            match examine(name, &path) {
                Ok(entry) if survey.models.iter().any(|other| other.id == entry.id) => {
                    let reason = format!("another base model is called {:?} already", entry.id);
                    survey.skipped.push(Skipped { path, reason });
                }
                Ok(entry) => survey.models.push(entry),
                Err(reason) => survey.skipped.push(Skipped { path, reason }),
            }
        }
        survey.models.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(survey)
    }
}

/// Downloads in progress carry one of these endings, whichever program makes them.
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

/// The base model at `path`, or why there is none.
fn examine(name: &str, path: &Path) -> Result<BaseModelEntry, String> {
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

/// A folder in Hugging Face layout is the model itself; else the one `.gguf` file in it is.
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

    fn ids(survey: &Survey) -> Vec<&str> {
        survey.models.iter().map(|entry| entry.id.as_str()).collect()
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
        let survey = Catalog::new(root.path().to_owned()).survey().unwrap();
        assert_eq!(ids(&survey), ["SHOUT", "bare", "hf", "in-folder", "torch"]);
        assert_eq!(survey.skipped, []);
        let path = |id: &str| survey.models.iter().find(|m| m.id == id).unwrap().path.clone();
        assert_eq!(path("hf"), root.path().join("hf"));
        assert_eq!(path("in-folder"), root.path().join("in-folder/Some-Name.Q4.gguf"));
        assert_eq!(path("bare"), root.path().join("bare.gguf"));
        let kinds: Vec<_> = survey.models.iter().map(BaseModelEntry::kind).collect();
        assert_eq!(kinds, ["gguf", "gguf", "safetensors", "gguf", "pytorch"]);
        assert!(survey.models.iter().all(|entry| entry.created_at > 1_600_000_000));
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
        let survey = Catalog::new(root.path().to_owned()).survey().unwrap();
        assert_eq!(ids(&survey), ["same"]);
        assert!(survey.models[0].path.ends_with("same/model.gguf"));
        let reason = |name: &str| {
            let path = root.path().join(name);
            survey.skipped.iter().find(|s| s.path == path).unwrap().reason.clone()
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
        let survey = Catalog::new(root.path().to_owned()).survey().unwrap();
        assert_eq!(ids(&survey), Vec::<&str>::new());
        assert_eq!(survey.skipped.len(), 1, "{survey:?}");
        assert!(survey.skipped[0].path.ends_with("inside"));
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
    fn a_model_that_appears_later_is_found() {
        let root = tempfile::tempdir().unwrap();
        let catalog = Catalog::new(root.path().to_owned());
        assert_eq!(catalog.find("late").unwrap(), None);
        touch(root.path(), &["late/model.gguf"]);
        assert!(catalog.find("late").unwrap().is_some());
    }
}
