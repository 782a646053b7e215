//! Ollama's Modelfile beside a GGUF file. The chat template is in the GGUF file, where Ollama finds
//! it; what ends an answer is said here as well.

use std::fmt::Write;

use super::Tuned;

/// Name of the file.
pub(super) const FILE_NAME: &str = "Modelfile";

/// For a whole model in the file `weights` beside it.
pub(super) fn of_model(tuned: &Tuned, weights: &str) -> String {
    format!("# {}\nFROM ./{weights}\n{}", tuned.name, stops(tuned))
}

/// For an adapter in the file `adapter` beside it, on the base model, which Ollama has to be given.
pub(super) fn of_adapter(tuned: &Tuned, adapter: &str) -> String {
    let base = tuned.base.path.file_name().unwrap_or_default().to_string_lossy();
    format!(
        "# {}\n# The base model that it was trained on: put it beside this file, or name where it is.\n\
         FROM ./{base}\nADAPTER ./{adapter}\n{}",
        tuned.name,
        stops(tuned)
    )
}

/// A line for each text that ends an answer.
fn stops(tuned: &Tuned) -> String {
    let mut lines = String::new();
    for id in tuned.base.tokenizer.stop_ids() {
        if let Some(text) = tuned.base.tokenizer.text_of(*id) {
            // Writing to a String cannot fail.
            let _ = writeln!(lines, "PARAMETER stop {text:?}");
        }
    }
    lines
}
