//! Ollama's Modelfile beside a GGUF file: the weights, the template of prompts, and the stop tokens.

use std::fmt::Write;

use super::ollama_template::OllamaTemplate;
use super::opened_model::OpenedModel;

use crate::train::model::chat_template::STRFTIME_NOW;

/// Name of the file.
pub(super) const FILE_NAME: &str = "Modelfile";

/// A Modelfile.
pub(super) struct Modelfile {
    /// Its text.
    pub text: String,
    /// What whoever takes it must do, a sentence each.
    pub remarks: Vec<String>,
}

/// The Modelfile of a whole model in the file `weights`.
pub(super) fn of_model(model: &OpenedModel, weights: &str) -> Modelfile {
    finish(model, format!("# {}\nFROM ./{weights}\n", model.name))
}

/// The Modelfile of an adapter in the file `adapter`. Ollama needs the base model as well.
pub(super) fn of_adapter(model: &OpenedModel, adapter: &str) -> Modelfile {
    let base = model.base.path.file_name().unwrap_or_default().to_string_lossy();
    let text = format!(
        "# {}\n# The base model that it was trained on: put it beside this file, or name where it is.\n\
         FROM ./{base}\nADAPTER ./{adapter}\n",
        model.name
    );
    finish(model, text)
}

/// Adds what both have.
fn finish(model: &OpenedModel, mut text: String) -> Modelfile {
    let mut remarks = Vec::new();
    // Without a chat template a prompt is its text, which is what Ollama does by itself.
    if model.base.template.is_some() {
        template(model, &mut text, &mut remarks);
    }
    text.push_str(&stops(model));
    Modelfile { text, remarks }
}

/// Adds the template of prompts, or a comment that one must be given.
fn template(model: &OpenedModel, text: &mut String, remarks: &mut Vec<String>) {
    let found = OllamaTemplate::of(&model.base);
    let is_quotable = |found: &OllamaTemplate| {
        found.default_system.as_ref().is_none_or(|system| !system.contains("\"\"\""))
    };
    let Some(found) = found.filter(is_quotable) else {
        text.push_str(
            "# A TEMPLATE must be given here: hone found none in Ollama's language that writes prompts as \
             the\n# model's chat template does, and without it the model is asked otherwise than it was \
             trained.\n",
        );
        remarks.push(format!(
            "{FILE_NAME}: a TEMPLATE must be given by hand, because Ollama's language has none that writes \
             prompts as the model's chat template does"
        ));
        return;
    };
    text.push_str("# It writes messages as the model's chat template does; tools are not in it.\n");
    if model.base.template.as_ref().is_some_and(|template| template.reads(STRFTIME_NOW)) {
        text.push_str("# The date in it, if there is one, is that of the export.\n");
    }
    if !found.takes_system {
        text.push_str("# The model's chat template takes no system message.\n");
    }
    let _ = writeln!(text, "TEMPLATE \"\"\"{}\"\"\"", found.template);
    if let Some(system) = found.default_system {
        let _ = writeln!(text, "SYSTEM \"\"\"{system}\"\"\"");
    }
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
