//! The texts of a model's chat templates, where a model's files have them.
//!
//! They are found and chosen as transformers does it: `chat_template.jinja` and the files of
//! `additional_chat_templates` go before the key `chat_template` of `tokenizer_config.json`, which is a text
//! or a list of named ones; `chat_template.json`, where processors have theirs, comes last.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::chat_template::{ChatTemplate, DEFAULT, TemplateError, TemplateTokens};
use super::error::LoadError;
use crate::artifacts::model::{SPECIAL_TOKENS_FILE, TEMPLATE_FILE, TEMPLATE_SETTINGS_FILE};
use crate::util::excerpt::excerpt;
use crate::util::hex::hex;
use crate::util::regular_file;

/// The folder of the others.
const ADDITIONAL_FOLDER: &str = "additional_chat_templates";

/// The file of a processor's template.
const PROCESSOR_FILE: &str = "chat_template.json";

/// The key of `tokenizer_config.json` and of [`PROCESSOR_FILE`].
pub(super) const KEY: &str = "chat_template";

/// Longest template; real ones have some 20 kB.
const MAX_TEMPLATE_BYTES: u64 = 1 << 20;

/// Chat templates by name. A model with only one has it as [`DEFAULT`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TemplateSources(BTreeMap<String, String>);

impl TemplateSources {
    /// One template for every conversation.
    pub fn single(text: impl Into<String>) -> Self {
        Self(BTreeMap::from([(DEFAULT.to_owned(), text.into())]))
    }

    /// The templates of a folder whose `tokenizer_config.json` is `config`; empty when it has none.
    pub fn read(folder: &Path, config: &Value) -> Result<Self, LoadError> {
        let mut found = BTreeMap::new();
        let file = folder.join(TEMPLATE_FILE);
        if file.exists() {
            found.insert(DEFAULT.to_owned(), read_text(&file)?);
        }
        for path in additional_files(folder) {
            if let Some(name) = path.file_stem().and_then(|stem| stem.to_str()) {
                found.insert(name.to_owned(), read_text(&path)?);
            }
        }
        if found.is_empty() {
            found = named(&config[KEY]);
        }
        let file = folder.join(PROCESSOR_FILE);
        if found.is_empty() && file.exists() {
            let processor: Value = serde_json::from_str(&read_text(&file)?)
                .map_err(|error| LoadError::malformed(&file, format!("not JSON: {error}")))?;
            found = named(&processor[KEY]);
        }
        Ok(Self(found))
    }

    /// The templates of files that are not in a folder yet: of `chat_template.jinja` and of
    /// `tokenizer_config.json`, which is `config`.
    pub(super) fn in_files(template: Option<&[u8]>, config: &Value) -> Self {
        match template {
            Some(bytes) => Self::single(unix_lines(&String::from_utf8_lossy(bytes))),
            None => Self(named(&config[KEY])),
        }
    }

    /// The templates of a folder, read without the rest of the model.
    pub fn of_folder(folder: &Path) -> Result<Self, LoadError> {
        let file = folder.join("tokenizer_config.json");
        if !file.exists() {
            return Self::read(folder, &Value::Null);
        }
        let config = serde_json::from_str(&read_text(&file)?)
            .map_err(|error| LoadError::malformed(&file, format!("not JSON: {error}")))?;
        Self::read(folder, &config)
    }

    /// What a job means by `chat_template`: one of these by its name, or a text of its own.
    ///
    /// # Errors
    /// It is neither.
    pub fn choose(&self, chat_template: &str) -> Result<Self, TemplateError> {
        match self.0.get(chat_template) {
            Some(text) => Ok(Self::single(text.clone())),
            None if is_jinja(chat_template) => Ok(Self::single(chat_template)),
            None => {
                let name = excerpt(chat_template).into_owned();
                let names = excerpt(&self.names()).into_owned();
                Err(TemplateError::UnknownName { name, names })
            }
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds a template.
    pub(super) fn insert(&mut self, name: &str, text: &str) {
        self.0.insert(name.to_owned(), text.to_owned());
    }

    /// Names and texts, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, text)| (name.as_str(), text.as_str()))
    }

    /// The names, for people.
    fn names(&self) -> String {
        if self.is_empty() {
            return "none".to_owned();
        }
        let names: Vec<&str> = self.0.keys().map(String::as_str).collect();
        names.join(", ")
    }

    /// The text for conversations without tools.
    pub fn default_text(&self) -> Option<&str> {
        self.0.get(DEFAULT).map(String::as_str)
    }

    /// The only text; `None` where there are several, or none, or one that is for some conversations alone.
    pub fn single_text(&self) -> Option<&str> {
        if self.0.len() == 1 { self.default_text() } else { None }
    }

    /// SHA-256 of the text or, where there are several, of a JSON object of them; lower-case hex.
    pub fn digest(&self) -> Option<String> {
        let text = match self.single_text() {
            Some(text) => text.to_owned(),
            None if self.is_empty() => return None,
            None => serde_json::to_string(&self.0).ok()?,
        };
        Some(hex(&Sha256::digest(text.as_bytes())))
    }

    /// What `tokenizer_config.json` has as `chat_template`.
    pub(super) fn in_tokenizer_config(&self) -> Value {
        match self.single_text() {
            Some(text) => text.into(),
            None => self
                .iter()
                .map(|(name, template)| serde_json::json!({"name": name, "template": template}))
                .collect(),
        }
    }

    /// Compiles them; `None` when there is none.
    pub fn compile(&self, tokens: &TemplateTokens) -> Result<Option<ChatTemplate>, TemplateError> {
        if let Some(text) = self.single_text() {
            return ChatTemplate::single(text, tokens).map(Some);
        }
        Ok((!self.is_empty()).then(|| ChatTemplate::with_names(self.iter(), tokens)))
    }
}

/// Whether a text is a template rather than the name of one: whether it writes or does anything.
pub fn is_jinja(text: &str) -> bool {
    text.contains("{{") || text.contains("{%")
}

/// The files that decide how conversations of a folder are rendered and tokenised, whether they are there
/// or not.
pub(super) fn files(folder: &Path) -> Vec<PathBuf> {
    const FILES: &[&str] = &[
        TEMPLATE_FILE,
        TEMPLATE_SETTINGS_FILE,
        PROCESSOR_FILE,
        "tokenizer_config.json",
        SPECIAL_TOKENS_FILE,
        "tokenizer.json",
        "generation_config.json",
        "config.json",
    ];
    let mut files: Vec<PathBuf> = FILES.iter().map(|name| folder.join(name)).collect();
    files.extend(additional_files(folder));
    files
}

/// The files of additional templates, by name.
fn additional_files(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder.join(ADDITIONAL_FOLDER)) else {
        return Vec::new();
    };
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let mut paths: Vec<PathBuf> =
        paths.filter(|path| path.extension().is_some_and(|end| end == "jinja")).collect();
    paths.sort();
    paths
}

/// A text, or a list or object of named ones.
fn named(value: &Value) -> BTreeMap<String, String> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    match value {
        Value::String(text) => BTreeMap::from([(DEFAULT.to_owned(), text.clone())]),
        Value::Array(list) => list
            .iter()
            .filter_map(|one| Some((text(&one["name"])?, text(&one["template"])?)))
            .collect(),
        Value::Object(object) => {
            object.iter().filter_map(|(name, one)| Some((name.clone(), text(one)?))).collect()
        }
        _ => BTreeMap::new(),
    }
}

/// A text file, with the ends of its lines as Python reads them.
fn read_text(path: &Path) -> Result<String, LoadError> {
    let text = regular_file::read_text(path, MAX_TEMPLATE_BYTES)
        .map_err(|error| LoadError::io(path, error))?;
    Ok(unix_lines(&text))
}

fn unix_lines(text: &str) -> String {
    text.replace("\r\n", "\n").replace('\r', "\n")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a folder");
        for (name, text) in files {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().expect("a folder")).expect("is made");
            std::fs::write(path, text).expect("writes");
        }
        folder
    }

    fn found(files: &[(&str, &str)], config: Value) -> Vec<(String, String)> {
        let folder = folder(files);
        let sources = TemplateSources::read(folder.path(), &config).expect("it reads");
        sources.iter().map(|(name, text)| (name.to_owned(), text.to_owned())).collect()
    }

    fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect()
    }

    #[test]
    fn templates_are_found_where_transformers_finds_them() {
        let jinja = ("chat_template.jinja", "J");
        let tool_use = ("additional_chat_templates/tool_use.jinja", "T");
        let processor = ("chat_template.json", r#"{"chat_template": "P"}"#);
        let text = json!({"chat_template": "C"});
        let list = json!({"chat_template": [
            {"name": "tool_use", "template": "LT"}, {"name": "default", "template": "LD"}]});
        assert_eq!(found(&[], json!({})), []);
        assert_eq!(found(&[], text.clone()), pairs(&[("default", "C")]));
        assert_eq!(found(&[], list.clone()), pairs(&[("default", "LD"), ("tool_use", "LT")]));
        assert_eq!(found(&[jinja], list.clone()), pairs(&[("default", "J")]));
        assert_eq!(
            found(&[jinja, tool_use], text.clone()),
            pairs(&[("default", "J"), ("tool_use", "T")])
        );
        // transformers takes the files alone where there are any.
        assert_eq!(found(&[tool_use], text.clone()), pairs(&[("tool_use", "T")]));
        assert_eq!(found(&[processor], text), pairs(&[("default", "C")]));
        assert_eq!(found(&[processor], json!({})), pairs(&[("default", "P")]));
        assert_eq!(
            found(&[("chat_template.jinja", "a\r\nb")], json!({})),
            pairs(&[("default", "a\nb")])
        );
    }

    #[test]
    fn a_name_means_the_model_s_template_and_anything_else_is_one() {
        let list = json!([{"name": "default", "template": "D"}, {"name": "rag", "template": "R"}]);
        let sources = TemplateSources(named(&list));
        let chosen = |text: &str| sources.choose(text).expect("a name or a template");
        assert_eq!(chosen("rag").single_text(), Some("R"));
        assert_eq!(chosen("{{ 1 }}").single_text(), Some("{{ 1 }}"));
        let error = sources.choose("rug").expect_err("it is neither").to_string();
        assert!(error.contains("\"rug\"") && error.contains("default, rag"), "{error}");
        assert_eq!(sources.single_text(), None);
        assert_eq!(sources.in_tokenizer_config(), list);
        assert_eq!(chosen("rag").in_tokenizer_config(), json!("R"));
    }
}
