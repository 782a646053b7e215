//! The chat template that a tuned model was trained with, which is kept beside its weights: whatever happens
//! to the base model's files, the tuned model is served and exported with it.
//!
//! Beside an adapter there is `chat_template.jinja`, where other programs look as well, and
//! `chat_template_settings.json` where the template has settings or other templates beside it. A whole
//! model has its templates where every model has them, and its settings in the same file.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::error::LoadError;
use super::template_sources::TemplateSources;
use crate::artifacts::model::{TEMPLATE_FILE, TEMPLATE_SETTINGS_FILE};
use crate::domain::chat_template::TemplateDefaults;
use crate::util::regular_file;

/// How a tuned model's conversations are rendered.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct KeptTemplate {
    /// The texts; empty where the base model had none.
    pub templates: TemplateSources,
    /// Settings for answers.
    pub defaults: TemplateDefaults,
}

/// Longest of the two files.
const MAX_BYTES: u64 = 4 << 20;

/// What `chat_template_settings.json` holds.
#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct SettingsFile {
    /// All templates, where `chat_template.jinja` does not say all.
    #[serde(skip_serializing_if = "TemplateSources::is_empty")]
    templates: TemplateSources,
    #[serde(flatten)]
    defaults: TemplateDefaults,
}

impl KeptTemplate {
    /// The files beside an adapter, by name.
    pub fn adapter_files(&self) -> Result<Vec<(&'static str, Vec<u8>)>, LoadError> {
        let mut files = Vec::new();
        if let Some(text) = self.templates.default_text() {
            files.push((TEMPLATE_FILE, text.as_bytes().to_vec()));
        }
        let mut settings = SettingsFile { defaults: self.defaults.clone(), ..Default::default() };
        if self.templates.single_text().is_none() {
            settings.templates = self.templates.clone();
        }
        files.extend(settings.file()?);
        Ok(files)
    }

    /// The settings' file of a whole model; `None` without settings.
    pub fn settings_file(&self) -> Result<Option<(&'static str, Vec<u8>)>, LoadError> {
        SettingsFile { defaults: self.defaults.clone(), ..Default::default() }.file()
    }

    /// Reads what is kept beside an adapter; `None` where nothing is, as beside those of earlier versions.
    pub fn of_adapter(folder: &Path) -> Result<Option<Self>, LoadError> {
        let read = |name: &str| {
            let path = folder.join(name);
            match regular_file::read(&path, MAX_BYTES) {
                Ok(bytes) => Ok(Some(bytes)),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
                Err(error) => Err(LoadError::io(&path, error)),
            }
        };
        Self::from_files(read(TEMPLATE_FILE)?.as_deref(), read(TEMPLATE_SETTINGS_FILE)?.as_deref())
    }

    /// The same from the bytes of the two files.
    pub fn from_files(
        template: Option<&[u8]>,
        settings: Option<&[u8]>,
    ) -> Result<Option<Self>, LoadError> {
        if template.is_none() && settings.is_none() {
            return Ok(None);
        }
        let SettingsFile { mut templates, defaults } = match settings {
            Some(bytes) => SettingsFile::read(bytes)?,
            None => SettingsFile::default(),
        };
        if let Some(bytes) = template
            && templates.is_empty()
        {
            let text = std::str::from_utf8(bytes).map_err(|error| {
                LoadError::malformed(Path::new(TEMPLATE_FILE), error.to_string())
            })?;
            templates = TemplateSources::single(text);
        }
        Ok(Some(Self { templates, defaults }))
    }
}

/// The settings of a whole model's folder.
pub(super) fn defaults_of(folder: &Path) -> Result<TemplateDefaults, LoadError> {
    let path = folder.join(TEMPLATE_SETTINGS_FILE);
    if !path.exists() {
        return Ok(TemplateDefaults::default());
    }
    let bytes =
        regular_file::read(&path, MAX_BYTES).map_err(|error| LoadError::io(&path, error))?;
    Ok(SettingsFile::read(&bytes)?.defaults)
}

impl SettingsFile {
    fn read(bytes: &[u8]) -> Result<Self, LoadError> {
        serde_json::from_slice(bytes).map_err(|error| {
            LoadError::malformed(Path::new(TEMPLATE_SETTINGS_FILE), error.to_string())
        })
    }

    /// The file; `None` when it would say nothing.
    fn file(&self) -> Result<Option<(&'static str, Vec<u8>)>, LoadError> {
        if self.templates.is_empty() && self.defaults.is_empty() {
            return Ok(None);
        }
        let mut bytes = serde_json::to_vec_pretty(self).map_err(|error| {
            LoadError::malformed(Path::new(TEMPLATE_SETTINGS_FILE), error.to_string())
        })?;
        bytes.push(b'\n');
        Ok(Some((TEMPLATE_SETTINGS_FILE, bytes)))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_kept_beside_an_adapter_reads_back() {
        let list = json!({"default": "D", "tool_use": "T"});
        let several: TemplateSources = serde_json::from_value(list).expect("names and texts");
        let only: TemplateSources =
            serde_json::from_value(json!({"tool_use": "T"})).expect("a name and a text");
        let defaults = TemplateDefaults {
            kwargs: json!({"enable_thinking": false}).as_object().cloned().expect("an object"),
            date: chrono::NaiveDate::from_ymd_opt(2024, 7, 26),
        };
        let none = TemplateDefaults::default();
        for (templates, defaults, names) in [
            (TemplateSources::single("{{ 1 }}\n"), none.clone(), vec![TEMPLATE_FILE]),
            (
                TemplateSources::single("D"),
                defaults.clone(),
                vec![TEMPLATE_FILE, TEMPLATE_SETTINGS_FILE],
            ),
            (several, none.clone(), vec![TEMPLATE_FILE, TEMPLATE_SETTINGS_FILE]),
            (only, defaults, vec![TEMPLATE_SETTINGS_FILE]),
            (TemplateSources::default(), none, vec![]),
        ] {
            let kept = KeptTemplate { templates, defaults };
            let files = kept.adapter_files().expect("it writes");
            assert_eq!(files.iter().map(|(name, _)| *name).collect::<Vec<_>>(), names);
            let folder = tempfile::tempdir().expect("a folder");
            for (name, bytes) in &files {
                std::fs::write(folder.path().join(name), bytes).expect("writes");
            }
            let read = KeptTemplate::of_adapter(folder.path()).expect("it reads");
            assert_eq!(read, (!files.is_empty()).then_some(kept));
        }
    }
}
