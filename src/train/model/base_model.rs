//! A base model on disk, opened: configuration, weights, tokenizer, template.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;

use super::chat_template::ChatTemplate;
use super::error::LoadError;
use super::tokenizer::{SpecialIds, Tokenizer};
use super::weights::{WeightSource, folder, gguf};
use crate::artifacts::model::COMPANIONS;
use crate::base_models::RECORD_FILE;
use crate::util::file_digest::StreamDigest;

/// Everything that one base model's folder or `.gguf` file holds.
pub struct BaseModel {
    /// The configuration, as Hugging Face's `config.json` has it (a GGUF reader translates).
    pub config: Value,
    /// The weights, read tensor by tensor when the engine asks.
    pub weights: Box<dyn WeightSource>,
    /// Text to tokens and back; shared with answers, which may outlive their turn of the model.
    pub tokenizer: Arc<Tokenizer>,
    /// How conversations become text; `None` when the model brings no template.
    pub template: Option<ChatTemplate>,
    /// The template as the model brings it.
    pub template_source: Option<String>,
    /// SHA-256 over the model's files, lower-case hex.
    pub digest: String,
    /// The folder or `.gguf` file.
    pub path: PathBuf,
}

impl BaseModel {
    /// Opens a folder in Hugging Face layout, one `.gguf` file, or a folder that holds one.
    ///
    /// # Errors
    /// The file that is missing or cannot be read, by name, and why.
    pub fn open(path: &Path) -> Result<Self, LoadError> {
        if path.is_file() {
            return Self::open_gguf(path);
        }
        if path.join("config.json").is_file() {
            return Self::open_folder(path);
        }
        let mut files = files_of(path)?;
        files.retain(|file| file.extension().is_some_and(|end| end == "gguf"));
        match &files[..] {
            [one] => Self::open_gguf(one),
            _ => Err(LoadError::malformed(
                path,
                format!(
                    "it holds neither a config.json nor exactly one .gguf file, but {} of them",
                    files.len()
                ),
            )),
        }
    }

    fn open_folder(folder: &Path) -> Result<Self, LoadError> {
        let config = read_json(&folder.join("config.json"))?;
        let tokenizer_config = read_json_if_there(&folder.join("tokenizer_config.json"))?;
        let generation = read_json_if_there(&folder.join("generation_config.json"))?;
        let path = folder.join("tokenizer.json");
        let bytes = std::fs::read(&path).map_err(|error| LoadError::io(&path, error))?;
        let token_text = |key: &str| {
            let value = &tokenizer_config[key];
            value.as_str().or_else(|| value["content"].as_str()).map(str::to_owned)
        };
        let mut ends = ids(&generation["eos_token_id"]);
        ends.extend(ids(&config["eos_token_id"]));
        let special = SpecialIds {
            beginning: ids(&config["bos_token_id"]).first().copied(),
            ends: Vec::new(),
            adds_beginning: tokenizer_config["add_bos_token"].as_bool().unwrap_or(false),
        };
        let mut tokenizer = Tokenizer::from_json(&bytes, special)
            .map_err(|error| LoadError::malformed(&path, error.to_string()))?;
        if tokenizer_config["add_bos_token"].is_null() {
            tokenizer.begin_texts_as_its_file_says();
        }
        // The tokenizer's own end of text comes first: it is what ends a completion.
        let named = token_text("eos_token").and_then(|text| {
            tokenizer.control_tokens().iter().find(|(token, _)| *token == text).map(|(_, id)| *id)
        });
        for id in named.into_iter().chain(ends) {
            tokenizer.add_stop(id);
        }
        let source = template_source(folder, &tokenizer_config)?;
        let beginning = token_text("bos_token").unwrap_or_default();
        let end = token_text("eos_token").unwrap_or_default();
        let template = compile(source.as_deref(), &mut tokenizer, &beginning, &end, folder)?;
        Ok(Self {
            weights: folder::open(folder)?,
            digest: digest_of(&model_files_of(folder)?)?,
            path: folder.to_owned(),
            config,
            tokenizer: Arc::new(tokenizer),
            template,
            template_source: source,
        })
    }

    fn open_gguf(path: &Path) -> Result<Self, LoadError> {
        let opened = gguf::open(path)?;
        let mut tokenizer = Tokenizer::from_json(&opened.tokenizer_json, opened.special)
            .map_err(|error| LoadError::malformed(path, error.to_string()))?;
        let text = |id: Option<u32>| id.and_then(|id| tokenizer.text_of(id)).unwrap_or_default();
        let beginning = text(tokenizer.special().beginning);
        let end = text(tokenizer.special().ends.first().copied());
        let template = compile(opened.template.as_deref(), &mut tokenizer, &beginning, &end, path)?;
        Ok(Self {
            config: opened.config,
            weights: opened.weights,
            tokenizer: Arc::new(tokenizer),
            template,
            template_source: opened.template,
            digest: digest_of(&[path.to_owned()])?,
            path: path.to_owned(),
        })
    }

    /// The files that a model made of this one has beside its configuration and weights, by name.
    pub fn companions(&self) -> Result<Vec<(String, Vec<u8>)>, LoadError> {
        if self.path.is_file() {
            return self.companions_from_gguf();
        }
        let mut files = Vec::new();
        for name in COMPANIONS {
            let path = self.path.join(name);
            if path.is_file() {
                let bytes = std::fs::read(&path).map_err(|error| LoadError::io(&path, error))?;
                files.push(((*name).to_owned(), bytes));
            }
        }
        Ok(files)
    }

    /// What the one file says of tokens, template and stops, in Hugging Face's files.
    fn companions_from_gguf(&self) -> Result<Vec<(String, Vec<u8>)>, LoadError> {
        let opened = gguf::open(&self.path)?;
        let special = self.tokenizer.special();
        let text = |id: Option<u32>| id.and_then(|id| self.tokenizer.text_of(id));
        let tokenizer_config = serde_json::json!({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": text(opened.special.beginning),
            "eos_token": text(opened.special.ends.first().copied()),
            "add_bos_token": opened.special.adds_beginning,
            "clean_up_tokenization_spaces": false,
            "model_max_length": self.config["max_position_embeddings"],
        });
        let generation = serde_json::json!({
            "bos_token_id": opened.special.beginning,
            "eos_token_id": special.ends,
        });
        let json = |value: &Value| {
            serde_json::to_vec_pretty(value)
                .map_err(|error| LoadError::malformed(&self.path, error.to_string()))
        };
        let mut files = vec![
            ("generation_config.json".to_owned(), json(&generation)?),
            ("tokenizer.json".to_owned(), opened.tokenizer_json),
            ("tokenizer_config.json".to_owned(), json(&tokenizer_config)?),
        ];
        if let Some(template) = opened.template {
            files.push(("chat_template.jinja".to_owned(), template.into_bytes()));
        }
        Ok(files)
    }
}

fn read_json(path: &Path) -> Result<Value, LoadError> {
    let bytes = std::fs::read(path).map_err(|error| LoadError::io(path, error))?;
    serde_json::from_slice(&bytes)
        .map_err(|error| LoadError::malformed(path, format!("not JSON: {error}")))
}

fn read_json_if_there(path: &Path) -> Result<Value, LoadError> {
    if path.exists() { read_json(path) } else { Ok(Value::Null) }
}

/// A token id, or a list of them.
fn ids(value: &Value) -> Vec<u32> {
    let one = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match value {
        Value::Array(list) => list.iter().filter_map(one).collect(),
        other => one(other).into_iter().collect(),
    }
}

/// The chat template: a file of its own, or a key of `tokenizer_config.json` (a text, or a list of
/// named ones, of which `default` is meant).
fn template_source(folder: &Path, config: &Value) -> Result<Option<String>, LoadError> {
    let path = folder.join("chat_template.jinja");
    if path.exists() {
        let text = std::fs::read_to_string(&path).map_err(|error| LoadError::io(&path, error))?;
        return Ok(Some(text));
    }
    Ok(match &config["chat_template"] {
        Value::String(text) => Some(text.clone()),
        Value::Array(list) => list
            .iter()
            .find(|named| named["name"] == "default")
            .and_then(|named| named["template"].as_str())
            .map(str::to_owned),
        _ => None,
    })
}

/// Compiles the template, and lets generation stop at its end-of-turn token.
fn compile(
    source: Option<&str>,
    tokenizer: &mut Tokenizer,
    beginning: &str,
    end: &str,
    path: &Path,
) -> Result<Option<ChatTemplate>, LoadError> {
    let Some(source) = source else {
        return Ok(None);
    };
    let control: Vec<String> =
        tokenizer.control_tokens().iter().map(|(text, _)| text.clone()).collect();
    let mut template = ChatTemplate::new(source, &control, beginning, end)
        .map_err(|error| LoadError::malformed(path, error.to_string()))?;
    let added: Vec<(String, u32)> =
        tokenizer.added_tokens().map(|(text, id)| (text.to_owned(), id)).collect();
    let end_of_turn = template.end_of_turn(added.iter().map(|(text, _)| text.as_str()));
    let id = end_of_turn.and_then(|end| added.iter().find(|(text, _)| text == end));
    if let Some((_, id)) = id {
        tokenizer.add_stop(*id);
    }
    let stops = tokenizer.stop_ids().iter().filter_map(|id| tokenizer.text_of(*id));
    template.set_stops(stops.collect());
    Ok(Some(template))
}

/// The files of a folder, by name.
fn files_of(folder: &Path) -> Result<Vec<PathBuf>, LoadError> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(|error| LoadError::io(folder, error))? {
        let path = entry.map_err(|error| LoadError::io(folder, error))?.path();
        if path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// The files of a folder that are the model, by name: where it comes from is no part of it.
fn model_files_of(folder: &Path) -> Result<Vec<PathBuf>, LoadError> {
    let mut files = files_of(folder)?;
    files.retain(|path| path.file_name().is_none_or(|name| name != RECORD_FILE));
    Ok(files)
}

/// SHA-256 over names and contents of files.
fn digest_of(files: &[PathBuf]) -> Result<String, LoadError> {
    let mut digest = StreamDigest::default();
    for path in files {
        digest.update(path.file_name().unwrap_or_default().as_encoded_bytes());
        digest.update(&[0]);
        File::open(path)
            .and_then(|mut file| digest.read_all(&mut file, |_chunk| Ok(())))
            .map_err(|error| LoadError::io(path, error))?;
    }
    Ok(digest.finish())
}
