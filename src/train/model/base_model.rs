//! A base model on disk, opened: configuration, weights, tokenizer, template.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;

use super::chat_template::{ChatTemplate, TemplateTokens, token_text};
use super::error::LoadError;
use super::kept_template::{self, KeptTemplate};
use super::template_sources::{self, TemplateSources};
use super::tokenizer::{SpecialIds, Tokenizer};
use super::weights::{WeightSource, folder, gguf};
use crate::artifacts::model::{
    COMPANIONS, SPECIAL_TOKENS_FILE, TEMPLATE_FILE, TEMPLATE_SETTINGS_FILE,
};
use crate::base_models::RECORD_FILE;
use crate::domain::chat_template::{ControlTokens, TemplateDefaults};
use crate::util::file_digest::StreamDigest;
use crate::util::regular_file;

const TOKENIZER_CONFIG_FILE: &str = "tokenizer_config.json";

/// Longest `tokenizer.json`; those of large vocabularies have some 30 MB.
const MAX_TOKENIZER_BYTES: u64 = 96 << 20;

/// Longest configuration of a folder.
const MAX_JSON_BYTES: u64 = 16 << 20;

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
    /// The texts of the templates.
    pub templates: TemplateSources,
    /// Settings of the template that the model brings, as one that a job trained does.
    pub template_defaults: TemplateDefaults,
    /// What becomes of texts of training data that are spelled like its control tokens.
    pub control_tokens: ControlTokens,
    /// What its tokenizer says to templates.
    template_tokens: TemplateTokens,
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
        let tokenizer_config = with_special_tokens(
            read_json_if_there(&folder.join(TOKENIZER_CONFIG_FILE))?,
            &read_json_if_there(&folder.join(SPECIAL_TOKENS_FILE))?,
        );
        let generation = read_json_if_there(&folder.join("generation_config.json"))?;
        let path = folder.join("tokenizer.json");
        let bytes = regular_file::read(&path, MAX_TOKENIZER_BYTES)
            .map_err(|error| LoadError::io(&path, error))?;
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
        let named = token_text(&tokenizer_config["eos_token"]).and_then(|text| {
            tokenizer.control_tokens().iter().find(|(token, _)| *token == text).map(|(_, id)| *id)
        });
        for id in named.into_iter().chain(ends) {
            tokenizer.add_stop(id);
        }
        let template_tokens =
            TemplateTokens::of_config(control_texts(&tokenizer), &tokenizer_config);
        let mut model = Self {
            weights: folder::open(folder)?,
            digest: digest_of(&model_files_of(folder)?)?,
            path: folder.to_owned(),
            config,
            tokenizer: Arc::new(tokenizer),
            template: None,
            templates: TemplateSources::default(),
            template_defaults: kept_template::defaults_of(folder)?,
            control_tokens: ControlTokens::default(),
            template_tokens,
        };
        model.use_templates(TemplateSources::read(folder, &tokenizer_config)?)?;
        Ok(model)
    }

    fn open_gguf(path: &Path) -> Result<Self, LoadError> {
        let opened = gguf::open(path)?;
        let tokenizer = Tokenizer::from_json(&opened.tokenizer_json, opened.special)
            .map_err(|error| LoadError::malformed(path, error.to_string()))?;
        let text = |id: Option<u32>| id.and_then(|id| tokenizer.text_of(id)).unwrap_or_default();
        let special = tokenizer.special();
        let template_tokens = TemplateTokens::new(
            &control_texts(&tokenizer),
            &text(special.beginning),
            &text(special.ends.first().copied()),
        );
        let mut model = Self {
            config: opened.config,
            weights: opened.weights,
            tokenizer: Arc::new(tokenizer),
            template: None,
            templates: TemplateSources::default(),
            template_defaults: TemplateDefaults::default(),
            control_tokens: ControlTokens::default(),
            template_tokens,
            digest: digest_of(&[path.to_owned()])?,
            path: path.to_owned(),
        };
        model.use_templates(opened.templates)?;
        Ok(model)
    }

    /// Renders conversations with these templates from now on, and lets generation stop where they end a
    /// turn.
    ///
    /// # Errors
    /// The template is no valid Jinja.
    pub fn use_templates(&mut self, templates: TemplateSources) -> Result<(), LoadError> {
        self.template = self.compile(&templates)?;
        self.templates = templates;
        let stops = self.template.as_ref().map(|template| self.stops_of(template));
        if let (Some(stops), Some(tokenizer)) = (stops, Arc::get_mut(&mut self.tokenizer)) {
            stops.into_iter().for_each(|id| tokenizer.add_stop(id));
        }
        Ok(())
    }

    /// Renders conversations as a model that was trained from this one does: its kept template takes the
    /// place of the base's. An adapter of an earlier version has none.
    pub fn use_kept(&mut self, kept: Option<KeptTemplate>) -> Result<(), LoadError> {
        let Some(KeptTemplate { templates, defaults }) = kept else {
            return Ok(());
        };
        self.template_defaults = defaults;
        self.use_templates(templates)
    }

    /// What a model that is trained from this one keeps of how its conversations are rendered.
    pub fn kept_template(&self) -> KeptTemplate {
        KeptTemplate { templates: self.templates.clone(), defaults: self.template_defaults.clone() }
    }

    /// Compiles templates for this model's tokenizer.
    pub fn compile(&self, templates: &TemplateSources) -> Result<Option<ChatTemplate>, LoadError> {
        let compiled = templates
            .compile(&self.template_tokens)
            .map_err(|error| LoadError::malformed(&self.path, error.to_string()))?;
        let Some(mut template) = compiled else { return Ok(None) };
        let mut stops = self.stops_of(&template);
        stops.extend(self.tokenizer.stop_ids());
        let texts = stops.iter().filter_map(|id| self.tokenizer.text_of(*id));
        template.set_stops(texts.collect());
        Ok(Some(template))
    }

    /// The tokens with which a template ends a turn.
    pub fn stops_of(&self, template: &ChatTemplate) -> Vec<u32> {
        let added: Vec<(&str, u32)> = self.tokenizer.added_tokens().collect();
        let named = template.names().into_iter().filter_map(|name| template.named(name).ok());
        let end = |template: ChatTemplate| {
            let end = template.end_of_turn(added.iter().map(|(text, _)| *text))?;
            added.iter().find(|(text, _)| *text == end).map(|(_, id)| *id)
        };
        named.filter_map(end).collect()
    }

    /// The files that a model made of this one has beside its configuration and weights, by name.
    pub fn companions(&self) -> Result<Vec<(String, Vec<u8>)>, LoadError> {
        let mut files = match self.path.is_file() {
            true => self.companions_from_gguf()?,
            false => self.companions_of_folder()?,
        };
        self.put_templates(&mut files)?;
        Ok(files)
    }

    fn companions_of_folder(&self) -> Result<Vec<(String, Vec<u8>)>, LoadError> {
        let mut files = Vec::new();
        for name in COMPANIONS.iter().filter(|name| **name != TEMPLATE_SETTINGS_FILE) {
            let path = self.path.join(name);
            if path.is_file() {
                let bytes = std::fs::read(&path).map_err(|error| LoadError::io(&path, error))?;
                files.push(((*name).to_owned(), bytes));
            }
        }
        Ok(files)
    }

    /// Puts the templates and their settings in, unless the files say the same already.
    fn put_templates(&self, files: &mut Vec<(String, Vec<u8>)>) -> Result<(), LoadError> {
        let bytes_of = |name: &str| {
            let found = files.iter().find(|(other, _)| other == name);
            found.map(|(_, bytes)| bytes.as_slice())
        };
        let config = bytes_of(TOKENIZER_CONFIG_FILE).map_or(Ok(Value::Null), |bytes| {
            serde_json::from_slice(bytes)
                .map_err(|error| LoadError::malformed(&self.path, error.to_string()))
        })?;
        let found = TemplateSources::in_files(bytes_of(TEMPLATE_FILE), &config);
        files.extend(self.kept_template().settings_file()?.map(owned));
        if found == self.templates {
            return Ok(());
        }
        let mut config = if config.is_object() { config } else { serde_json::json!({}) };
        config[template_sources::KEY] = self.templates.in_tokenizer_config();
        let config = serde_json::to_vec_pretty(&config)
            .map_err(|error| LoadError::malformed(&self.path, error.to_string()))?;
        files.retain(|(name, _)| name != TEMPLATE_FILE && name != TOKENIZER_CONFIG_FILE);
        files.push((TOKENIZER_CONFIG_FILE.to_owned(), config));
        if let Some(text) = self.templates.single_text() {
            files.push((TEMPLATE_FILE.to_owned(), text.as_bytes().to_vec()));
        }
        Ok(())
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
            (TOKENIZER_CONFIG_FILE.to_owned(), json(&tokenizer_config)?),
        ];
        if let Some(text) = opened.templates.single_text() {
            files.push((TEMPLATE_FILE.to_owned(), text.as_bytes().to_vec()));
        }
        Ok(files)
    }
}

fn read_json(path: &Path) -> Result<Value, LoadError> {
    let bytes =
        regular_file::read(path, MAX_JSON_BYTES).map_err(|error| LoadError::io(path, error))?;
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

/// Texts of the control tokens.
/// A `tokenizer_config.json` with the special tokens that an older folder has in a file of their own. As in
/// transformers that file counts where the configuration does not list the tokens itself.
fn with_special_tokens(mut config: Value, special_tokens: &Value) -> Value {
    let lists_tokens = config.get("added_tokens_decoder").is_some();
    if let (Some(config), Some(tokens), false) =
        (config.as_object_mut(), special_tokens.as_object(), lists_tokens)
    {
        config.extend(tokens.clone());
    }
    config
}

fn control_texts(tokenizer: &Tokenizer) -> Vec<String> {
    tokenizer.control_tokens().iter().map(|(text, _)| text.clone()).collect()
}

fn owned((name, bytes): (&str, Vec<u8>)) -> (String, Vec<u8>) {
    (name.to_owned(), bytes)
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
        regular_file::open(path)
            .and_then(|mut file| digest.read_all(&mut file, |_chunk| Ok(())))
            .map_err(|error| LoadError::io(path, error))?;
    }
    Ok(digest.finish())
}
