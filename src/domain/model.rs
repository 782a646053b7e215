//! A fine-tuned model as the product sees it: an adapter beside a base model, or a whole model.

use serde::{Deserialize, Serialize};

use crate::domain::project::Project;

/// A model that a job made: its name, and where its files lie.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TunedModel {
    /// `ft:<base>:<organisation>:<suffix>:<id8>`, and `…:ckpt-step-<n>` for a checkpoint.
    pub id: String,
    /// Whose it is: its job's.
    pub project: Project,
    /// Unix seconds.
    pub created_at: i64,
    /// Id of the base model.
    pub base_model: String,
    /// The job that made it.
    pub job_id: String,
    /// Whether it is a model of its own (Hugging Face layout); else an adapter (PEFT layout), which
    /// needs its base.
    pub is_whole: bool,
    /// File id of `config.json`, or of `adapter_config.json`.
    pub config_file: String,
    /// File id of `model.safetensors`, or of `adapter_model.safetensors`.
    pub weights_file: String,
    /// File ids of what else it has: a whole model's tokenizer, the chat template that it was trained with.
    pub other_files: Vec<String>,
    /// Whether it is a checkpoint: those resolve by name and are not listed.
    pub is_checkpoint: bool,
}

impl TunedModel {
    /// Ids of all its files, the configuration first.
    pub fn files(&self) -> impl Iterator<Item = &String> {
        [&self.config_file, &self.weights_file].into_iter().chain(&self.other_files)
    }
}

/// That a project may use a fine-tuned model or checkpoint that is another project's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckpointPermission {
    /// `cp_…`.
    pub id: String,
    /// Name of the model or checkpoint.
    pub checkpoint: String,
    /// Who may use it.
    pub project: Project,
    /// Unix seconds.
    pub created_at: i64,
}

/// The name of the model that a job makes: `ft:<base>:<organisation>:<suffix>:<id8>`.
///
/// Clients split names on `:`, so other characters than `[A-Za-z0-9._-]` in the suffix become `-`.
pub fn tuned_model_name(base: &str, suffix: Option<&str>, id8: &str) -> String {
    let suffix: String = suffix
        .unwrap_or_default()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-') { c } else { '-' })
        .collect();
    format!("ft:{base}:{ORGANISATION}:{suffix}:{id8}")
}

/// The name of a checkpoint of `model` after `step` optimiser steps.
pub fn checkpoint_name(model: &str, step: u64) -> String {
    format!("{model}:ckpt-step-{step}")
}

/// The organisation in model names.
pub const ORGANISATION: &str = "local";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_name_has_five_parts_whatever_the_suffix() {
        assert_eq!(tuned_model_name("smol", None, "Ab3dEf9h"), "ft:smol:local::Ab3dEf9h");
        assert_eq!(tuned_model_name("smol", Some("a:b c"), "x"), "ft:smol:local:a-b-c:x");
        assert_eq!(checkpoint_name("ft:smol:local::x", 7), "ft:smol:local::x:ckpt-step-7");
    }
}
