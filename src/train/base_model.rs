//! A base model on disk, opened: configuration, weights, tokenizer, template.

use std::path::Path;

use super::template::ChatTemplate;
use super::tokenizer::Tokenizer;
use super::weights::{LoadError, WeightSource};

/// Everything that one base model's folder or `.gguf` file holds.
pub struct BaseModel {
    /// The configuration, as Hugging Face's `config.json` has it (a GGUF reader translates).
    pub config: serde_json::Value,
    /// The weights, read tensor by tensor when the engine asks.
    pub weights: Box<dyn WeightSource>,
    /// Text to tokens and back.
    pub tokenizer: Tokenizer,
    /// How conversations become text; `None` when the model brings no template.
    pub template: Option<ChatTemplate>,
    /// SHA-256 over the model's files, lower-case hex.
    pub digest: String,
}

impl BaseModel {
    /// Opens a folder in Hugging Face layout, or one `.gguf` file.
    pub fn open(_path: &Path) -> Result<Self, LoadError> {
        todo!()
    }
}
