//! Where the model of a request comes from.

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tempfile::TempDir;

use crate::base_models::BaseModelEntry;

/// The bytes of an adapter in PEFT layout.
#[derive(Debug, Clone)]
pub struct AdapterBytes {
    /// `adapter_config.json`.
    pub config: Bytes,
    /// `adapter_model.safetensors`.
    pub weights: Bytes,
    /// `chat_template.jinja`, the chat template that it was trained with.
    pub template: Option<Bytes>,
    /// `chat_template_settings.json`.
    pub template_settings: Option<Bytes>,
}

/// An adapter by name. Its bytes are fetched only when it is not attached yet.
pub struct AdapterSource {
    /// The fine-tuned model's or checkpoint's name.
    pub id: String,
    /// Fetches the bytes.
    pub load: BoxFuture<'static, Result<AdapterBytes, String>>,
}

/// A whole model, with or without adapters beside it.
pub enum BaseSource {
    /// A base model of the models folder.
    Entry(BaseModelEntry),
    /// A whole model that a job trained. Its files are fetched only when it is not loaded yet.
    FineTuned {
        /// The fine-tuned model's or checkpoint's name.
        id: String,
        /// Fetches the files into a folder, which is removed when it is dropped.
        load: BoxFuture<'static, Result<TempDir, String>>,
    },
}

/// The model that a request names.
pub struct ModelSource {
    /// The base model, or the whole model itself.
    pub base: BaseSource,
    /// The adapter of a fine-tuned model or checkpoint.
    pub adapter: Option<AdapterSource>,
}
