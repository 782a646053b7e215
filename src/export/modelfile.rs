//! Ollama's Modelfile beside a GGUF file. Ollama reads the chat template from the GGUF file; the Modelfile
//! names the stop tokens.

use std::fmt::Write;

use super::opened_model::OpenedModel;

/// Name of the file.
pub(super) const FILE_NAME: &str = "Modelfile";

/// The Modelfile of a whole model in the file `weights`.
pub(super) fn of_model(model: &OpenedModel, weights: &str) -> String {
    format!("# {}\nFROM ./{weights}\n{}", model.name, stops(model))
}

/// The Modelfile of an adapter in the file `adapter`. Ollama needs the base model as well.
pub(super) fn of_adapter(model: &OpenedModel, adapter: &str) -> String {
    let base = model.base.path.file_name().unwrap_or_default().to_string_lossy();
    format!(
        "# {}\n# The base model that it was trained on: put it beside this file, or name where it is.\n\
         FROM ./{base}\nADAPTER ./{adapter}\n{}",
        model.name,
        stops(model)
    )
}

/// A line for each stop token.
fn stops(model: &OpenedModel) -> String {
    let mut lines = String::new();
    for id in model.base.tokenizer.stop_ids() {
        if let Some(text) = model.base.tokenizer.text_of(*id) {
            // Writing to a String cannot fail.
            let _ = writeln!(lines, "PARAMETER stop {text:?}");
        }
    }
    lines
}
