//! The adapter as llama.cpp takes it beside a base (`--lora`), its pairs in 32-bit floats.

use std::path::Path;

use candle_core::quantized::gguf_file::Value;

use super::settings::text;
use super::{ExportError, Format, Tuned, modelfile};
use crate::artifacts::gguf::{self, Keys, Planned, Type};
use crate::train::model::weights::gguf::GgufLayout;
use crate::util::atomic_file;

/// Name of the adapter.
pub(super) const FILE_NAME: &str = "adapter.gguf";

/// Writes the adapter and an Ollama Modelfile beside it.
pub(super) fn write(tuned: &Tuned, folder: &Path) -> Result<(), ExportError> {
    let adapter = tuned.adapter(Format::GgufLora)?;
    let saved: Vec<&str> = adapter.saved().collect();
    if !saved.is_empty() {
        return Err(ExportError::Unsupported(format!(
            "the adapter holds {} in full, and llama.cpp's adapters hold LoRA pairs alone: export it \
             as {:?}, merged",
            saved.join(" and "),
            Format::Gguf.as_str()
        )));
    }
    let layout = GgufLayout::of(&tuned.config);
    let keys: Keys = vec![
        ("general.architecture".to_owned(), text(layout.architecture())),
        ("general.type".to_owned(), text("adapter")),
        ("general.name".to_owned(), text(&tuned.name)),
        ("adapter.type".to_owned(), text("lora")),
        // llama.cpp divides by the rank, also where PEFT divides by its root (rsLoRA).
        ("adapter.lora.alpha".to_owned(), Value::F32(adapter.scale * adapter.rank as f32)),
    ];
    let mut planned = Vec::new();
    let mut matrices = Vec::new();
    for tensor in &tuned.tensors {
        let Some(pair) = adapter.pair(tensor) else { continue };
        let Some(place) = layout.place(&tensor.name) else {
            return Err(no_place(&tensor.name, &layout));
        };
        let rank = adapter.rank;
        let plan = |matrix: &str, shape: [usize; 2]| Planned {
            name: format!("{}.lora_{matrix}", place.name),
            shape: shape.to_vec(),
            kind: Type::F32,
        };
        planned.push(plan("a", [rank, pair.inputs]));
        matrices.push(pair.a.to_vec());
        planned.push(plan("b", [pair.outputs, rank]));
        matrices.push(place.lora_b(pair.outputs, rank, pair.b.to_vec()));
    }
    let take = |index: usize| Ok::<_, ExportError>(std::mem::take(&mut matrices[index]));
    gguf::write(&folder.join(FILE_NAME), &keys, &planned, take)?;
    let modelfile = modelfile::of_adapter(tuned, FILE_NAME);
    Ok(atomic_file::write(&folder.join(modelfile::FILE_NAME), modelfile.as_bytes())?)
}

/// A tensor that llama.cpp's architecture does not have.
pub(super) fn no_place(name: &str, layout: &GgufLayout) -> ExportError {
    ExportError::Unsupported(format!(
        "llama.cpp's architecture {:?} has no place for {name:?}",
        layout.architecture()
    ))
}
