//! The adapter for llama.cpp's `--lora`, its LoRA pairs in 32-bit floats.

use std::path::Path;

use candle_core::quantized::gguf_file::Value;

use super::error::ExportError;
use super::format::ExportFormat;
use super::gguf_metadata::text;
use super::modelfile;
use super::opened_model::OpenedModel;
use crate::artifacts::gguf::{self, GgufMetadata, GgufTensor, GgufType};
use crate::train::model::weights::gguf::GgufLayout;
use crate::util::atomic_file;

/// Name of the adapter.
pub(super) const FILE_NAME: &str = "adapter.gguf";

/// Writes the adapter and an Ollama Modelfile beside it; what is to be done by hand, a sentence each.
pub(super) fn write(model: &OpenedModel, folder: &Path) -> Result<Vec<String>, ExportError> {
    let adapter = model.adapter(ExportFormat::GgufLora)?;
    let full: Vec<&str> = adapter.full_tensors().collect();
    if !full.is_empty() {
        return Err(ExportError::Unsupported(format!(
            "the adapter holds {} in full, and llama.cpp's adapters hold LoRA pairs alone: export it \
             as {:?}, merged",
            full.join(" and "),
            ExportFormat::Gguf.as_str()
        )));
    }
    let layout = GgufLayout::of(&model.config);
    let metadata: GgufMetadata = vec![
        ("general.architecture".to_owned(), text(layout.architecture())),
        ("general.type".to_owned(), text("adapter")),
        ("general.name".to_owned(), text(&model.name)),
        ("adapter.type".to_owned(), text("lora")),
        // llama.cpp divides by the rank, also where PEFT divides by the root of the rank (rsLoRA).
        ("adapter.lora.alpha".to_owned(), Value::F32(adapter.scale * adapter.rank as f32)),
    ];
    let mut tensors = Vec::new();
    let mut matrices = Vec::new();
    for tensor in &model.tensors {
        let Some(pair) = adapter.pair(tensor) else { continue };
        let Some(place) = layout.place(&tensor.name) else {
            return Err(no_place(&tensor.name, &layout));
        };
        let rank = adapter.rank;
        let entry = |matrix: &str, shape: [usize; 2]| GgufTensor {
            name: format!("{}.lora_{matrix}", place.name),
            shape: shape.to_vec(),
            kind: GgufType::F32,
        };
        tensors.push(entry("a", [rank, pair.inputs]));
        matrices.push(pair.a.to_vec());
        tensors.push(entry("b", [pair.outputs, rank]));
        matrices.push(place.lora_b(pair.outputs, rank, pair.b.to_vec()));
    }
    let take = |index: usize| Ok::<_, ExportError>(std::mem::take(&mut matrices[index]));
    gguf::write(&folder.join(FILE_NAME), &metadata, &tensors, take)?;
    let modelfile = modelfile::of_adapter(model, FILE_NAME);
    atomic_file::write(&folder.join(modelfile::FILE_NAME), modelfile.text.as_bytes())?;
    Ok(modelfile.remarks)
}

/// llama.cpp's architecture does not have this tensor.
pub(super) fn no_place(name: &str, layout: &GgufLayout) -> ExportError {
    ExportError::Unsupported(format!(
        "llama.cpp's architecture {:?} has no place for {name:?}",
        layout.architecture()
    ))
}
