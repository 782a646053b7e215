//! Stage 5, exports: a fine-tuned model in the formats of other programs. These are PEFT's adapter, a merged
//! model in Hugging Face's layout, llama.cpp's adapter and llama.cpp's model.
//!
//! [`fetch`] finds a model and fetches its files, [`OpenedModel`] opens them with the base model, [`write`]
//! writes a format into a folder. Called by `http::fine_tuning::adapter` and by `hone export`.

mod base_name;
mod error;
pub mod fetch;
mod format;
mod gguf_adapter;
mod gguf_metadata;
mod gguf_model;
mod gguf_tokenizer;
mod merged;
mod modelfile;
mod ollama_template;
mod opened_model;

use std::path::Path;

pub use self::error::ExportError;
pub use self::format::{ExportFormat, ExportOptions, Quantization, UnsupportedOption};
pub use self::opened_model::OpenedModel;
use crate::artifacts::peft;

/// Exports a model into `folder`, which must exist and be empty. The files are complete when this returns.
/// After an error some of them may exist, so the folder must not be used by others before. Returns what whoever
/// takes the files should know, a sentence each.
///
/// # Errors
/// When the format cannot hold the model, or a file cannot be read or written.
pub fn write(
    model: &OpenedModel,
    options: &ExportOptions,
    folder: &Path,
) -> Result<Vec<String>, ExportError> {
    match options.format {
        ExportFormat::Peft => {
            let adapter = model.adapter(options.format)?;
            peft::write(folder, &adapter.config, &adapter.tensors)?;
            Ok(Vec::new())
        }
        ExportFormat::Merged => merged::write(model, options.weight_type, folder),
        ExportFormat::GgufLora => gguf_adapter::write(model, folder),
        ExportFormat::Gguf => gguf_model::write(model, options.quantization, folder),
    }
}
