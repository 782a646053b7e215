//! The chat template of a run: the base model's, that of the model that the run continues from, or the job's
//! own, with the job's settings. It is kept in the work folder, so that every attempt of a job renders the
//! same bytes, whatever becomes of the base model's files.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use chrono::{NaiveDate, NaiveTime};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::channels::Sink;
use super::errors::{RunError, internal, invalid_model, invalid_template};
use super::notices::{note, warn};
use crate::artifacts::model::TEMPLATE_FILE;
use crate::domain::job::EventLevel;
use crate::train::model::base_model::BaseModel;
use crate::train::model::chat_template::{STRFTIME_NOW, TemplateSettings};
use crate::train::model::kept_template::KeptTemplate;
use crate::train::model::template_sources::TemplateSources;
use crate::train::protocol::RunSpec;
use crate::util::atomic_file;

/// The file in the work folder.
const FILE: &str = "chat_template.json";

/// What a run renders with, as far as the job says so; for its identity, report and certificate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TemplateIdentity {
    /// SHA-256 of the job's own template.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// Variables of the template.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub kwargs: Map<String, Value>,
    /// The day that its dates are of, where it writes any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub date: Option<NaiveDate>,
}

/// What the work folder keeps of the template of a run, and of the base model that it began with.
#[derive(Serialize, Deserialize)]
struct KeptByRun {
    templates: TemplateSources,
    /// SHA-256 of the base model's files.
    base_model: String,
    /// The state of these files, templates left out.
    files: BTreeMap<String, Value>,
}

/// Sets the template of `base` to what the job of `spec` renders with, and says what it makes of the job's
/// settings. What an earlier attempt has kept goes before what the files say now.
pub(super) fn prepare(
    base: &mut BaseModel,
    spec: &RunSpec,
    sink: &mut Sink<'_>,
) -> Result<(), RunError> {
    if let Some(folder) = &spec.continue_from {
        let kept = KeptTemplate::of_adapter(folder).map_err(|error| internal(error.to_string()))?;
        base.use_kept(kept).map_err(invalid_model)?;
    }
    let requested = &spec.chat_template;
    base.control_tokens = requested.control_tokens;
    base.template_defaults.date = requested.defaults.date;
    base.template_defaults.kwargs.extend(requested.defaults.kwargs.clone());
    let chosen = match &requested.chat_template {
        Some(text) => base.templates.choose(text),
        None => Ok(base.templates.clone()),
    };
    match read_kept(spec)? {
        Some(kept) => {
            if chosen.ok().as_ref() != Some(&kept.templates) {
                let message = "The base model's chat template has changed since the job began: the job \
                               goes on with the one that it began with";
                note(sink, EventLevel::Info, message.to_owned(), None);
            }
            if kept.base_model != base.digest && kept.files == files_of(base)? {
                // It is the model that the run began with but for its template.
                base.digest = kept.base_model;
            }
            base.use_templates(kept.templates).map_err(invalid_model)?;
        }
        None if requested.chat_template.is_some() => {
            let chosen = chosen.map_err(|error| invalid_template(&error))?;
            base.use_templates(chosen).map_err(|error| invalid_template(&error))?;
        }
        None => {}
    }
    let settings = TemplateSettings {
        kwargs: base.template_defaults.kwargs.clone(),
        date: date(spec).map(|day| day.and_time(NaiveTime::MIN)),
    };
    base.template = base.template.take().map(|template| template.with_settings(settings));
    notices(base, spec, sink);
    Ok(())
}

fn date(spec: &RunSpec) -> Option<NaiveDate> {
    spec.chat_template.defaults.date.or(spec.training_date)
}

/// What of this makes a run another one; `None` where the job says nothing of the template, which has no
/// date.
pub(super) fn identity(base: &BaseModel, spec: &RunSpec) -> Option<TemplateIdentity> {
    let has_date = base.template.as_ref().is_some_and(|template| template.reads(STRFTIME_NOW));
    let is_own = spec.chat_template.chat_template.is_some();
    let identity = TemplateIdentity {
        sha256: if is_own { base.templates.digest() } else { None },
        kwargs: base.template_defaults.kwargs.clone(),
        date: if has_date { date(spec) } else { None },
    };
    let says_nothing =
        identity.sha256.is_none() && identity.kwargs.is_empty() && identity.date.is_none();
    (!says_nothing).then_some(identity)
}

/// Says what the template makes of the job's settings.
fn notices(base: &BaseModel, spec: &RunSpec, sink: &mut Sink<'_>) {
    let reads = |name: &str| base.template.as_ref().is_some_and(|template| template.reads(name));
    let kwargs = &base.template_defaults.kwargs;
    let unread: Vec<String> =
        kwargs.keys().filter(|name| !reads(name)).map(|name| format!("{name:?}")).collect();
    if !unread.is_empty() {
        let message = format!(
            "The chat template reads no variable {}, so that chat_template_kwargs has no effect there",
            unread.join(" or ")
        );
        warn(sink, message);
    }
    let requested = spec.chat_template.defaults.date;
    let message = match (reads(STRFTIME_NOW), requested, date(spec)) {
        (false, Some(_), _) => {
            let message = format!(
                "The chat template does not call {STRFTIME_NOW}, so that chat_template_date has no effect"
            );
            return warn(sink, message);
        }
        (true, Some(day), _) => format!(
            "The chat template writes a date ({STRFTIME_NOW}): training writes that of {day}, and so do \
             answers unless their request says another chat_template_date"
        ),
        (true, None, Some(day)) => format!(
            "The chat template writes a date ({STRFTIME_NOW}): training writes that of {day}, on which \
             the job was created (UTC), and answers that of their request; chat_template_date sets one \
             for both"
        ),
        _ => return,
    };
    note(sink, EventLevel::Info, message, None);
}

/// Keeps the template of a run in its work folder, unless an earlier attempt has.
pub(super) fn keep(base: &BaseModel, spec: &RunSpec) -> Result<(), RunError> {
    let path = spec.work_dir.join(FILE);
    if path.exists() {
        return Ok(());
    }
    let kept = KeptByRun {
        templates: base.templates.clone(),
        base_model: base.digest.clone(),
        files: files_of(base)?,
    };
    let failed = |error: &dyn std::fmt::Display| internal(format!("{}: {error}", path.display()));
    let bytes = serde_json::to_vec_pretty(&kept).map_err(|error| failed(&error))?;
    std::fs::create_dir_all(&spec.work_dir).map_err(|error| failed(&error))?;
    atomic_file::write(&path, &bytes).map_err(|error| failed(&error))
}

/// What an earlier attempt has kept; `None` in the first one.
fn read_kept(spec: &RunSpec) -> Result<Option<KeptByRun>, RunError> {
    let path = spec.work_dir.join(FILE);
    let failed = |error: &dyn std::fmt::Display| internal(format!("{}: {error}", path.display()));
    match std::fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|error| failed(&error)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(&error)),
    }
}

fn files_of(base: &BaseModel) -> Result<BTreeMap<String, Value>, RunError> {
    states_of_files(&base.path)
        .map_err(|error| internal(format!("{}: {error}", base.path.display())))
}

/// The state of a model's files, templates left out: the digest of the tokenizer's configuration without
/// its template, of others their length and time.
fn states_of_files(path: &Path) -> std::io::Result<BTreeMap<String, Value>> {
    let mut states = BTreeMap::new();
    if path.is_file() {
        states.insert(String::new(), state_of(path)?);
        return Ok(states);
    }
    for entry in std::fs::read_dir(path)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if !path.is_file() || name == TEMPLATE_FILE || name == FILE {
            continue;
        }
        let state = match name.as_str() {
            "tokenizer_config.json" => without_template(&path)?,
            _ => state_of(&path)?,
        };
        states.insert(name, state);
    }
    Ok(states)
}

fn state_of(path: &Path) -> std::io::Result<Value> {
    let metadata = std::fs::metadata(path)?;
    Ok(serde_json::json!([metadata.len(), metadata.mtime(), metadata.mtime_nsec()]))
}

fn without_template(path: &Path) -> std::io::Result<Value> {
    let mut config: Value = serde_json::from_slice(&std::fs::read(path)?)?;
    if let Some(config) = config.as_object_mut() {
        config.remove("chat_template");
    }
    Ok(config)
}
