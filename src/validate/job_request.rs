//! The body of `POST /v1/fine_tuning/jobs`, checked by itself: files and models are looked up later.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::fields::BodyFields;
use super::{Refusal, chat_template, integrations, method};
use crate::domain::chat_template::ChatTemplateSettings;
use crate::domain::job::Hyperparameters;
use crate::util::excerpt::excerpt_of;

/// A request that is valid by itself.
#[derive(Debug, Clone, PartialEq)]
pub struct JobRequest {
    /// Id of the base model.
    pub model: String,
    /// File id.
    pub training_file: String,
    /// File id.
    pub validation_file: Option<String>,
    /// The client's part of the model's name.
    pub suffix: Option<String>,
    /// Seed, if the client chose one.
    pub seed: Option<u32>,
    /// Values that the client leaves open are `Auto`.
    pub hyperparameters: Hyperparameters,
    /// The client's metadata.
    pub metadata: Option<BTreeMap<String, String>>,
    /// How conversations are rendered.
    pub chat_template: ChatTemplateSettings,
    /// Paths of fields that hone does not use. An event names them; they are no error.
    pub unknown_fields: Vec<String>,
}

/// The fields of the body.
pub const FIELDS: &[&str] = &[
    "model",
    "training_file",
    "validation_file",
    "suffix",
    "seed",
    "method",
    "hyperparameters",
    "integrations",
    "metadata",
    "chat_template",
    "chat_template_kwargs",
    "chat_template_date",
    "control_tokens",
];

const MAX_SUFFIX_CHARS: usize = 64;
const MAX_SEED: u64 = 2_147_483_647;
const MAX_METADATA_PAIRS: usize = 16;
const MAX_METADATA_KEY_CHARS: usize = 64;
const MAX_METADATA_VALUE_CHARS: usize = 512;

/// Reads a request; an explicit null is the same as absence.
pub fn read(body: &Map<String, Value>) -> Result<JobRequest, Refusal> {
    let fields = BodyFields::new(body, FIELDS);
    integrations::check(fields.get("integrations"))?;
    let method = method::read(fields.get("method"), fields.get("hyperparameters"))?;
    let mut unknown_fields: Vec<String> = fields.unknown().cloned().collect();
    unknown_fields.extend(method.unknown_fields);
    Ok(JobRequest {
        model: fields.required_text("model")?,
        training_file: fields.required_text("training_file")?,
        validation_file: fields.text("validation_file")?,
        suffix: suffix(fields.text("suffix")?)?,
        seed: seed(fields.get("seed"))?,
        hyperparameters: method.hyperparameters,
        metadata: metadata(fields.get("metadata"))?,
        chat_template: chat_template::of_job(&fields)?,
        unknown_fields,
    })
}

fn suffix(text: Option<String>) -> Result<Option<String>, Refusal> {
    match text {
        Some(text) if text.is_empty() || text.chars().count() > MAX_SUFFIX_CHARS => {
            let message = format!("the suffix must have 1 to {MAX_SUFFIX_CHARS} characters");
            Err(Refusal::new("suffix", message))
        }
        other => Ok(other),
    }
}

fn seed(value: Option<&Value>) -> Result<Option<u32>, Refusal> {
    let Some(value) = value else {
        return Ok(None);
    };
    match value.as_u64().filter(|seed| *seed <= MAX_SEED) {
        Some(seed) => Ok(Some(seed as u32)),
        None => {
            let value = excerpt_of(value);
            let message =
                format!("the seed is {value}; it must be a whole number up to {MAX_SEED}");
            Err(Refusal::new("seed", message))
        }
    }
}

fn metadata(value: Option<&Value>) -> Result<Option<BTreeMap<String, String>>, Refusal> {
    let Some(value) = value else {
        return Ok(None);
    };
    let Some(object) = value.as_object() else {
        return Err(Refusal::new("metadata", "metadata must be an object of texts"));
    };
    if object.len() > MAX_METADATA_PAIRS {
        let message = format!("metadata has {} pairs; {MAX_METADATA_PAIRS} at most", object.len());
        return Err(Refusal::new("metadata", message));
    }
    let mut pairs = BTreeMap::new();
    for (key, value) in object {
        let Some(text) = value.as_str() else {
            let value = excerpt_of(value);
            let message = format!("the value is {value}; it must be a text");
            return Err(Refusal::new(format!("metadata.{key}"), message));
        };
        let is_long = key.chars().count() > MAX_METADATA_KEY_CHARS
            || text.chars().count() > MAX_METADATA_VALUE_CHARS;
        if is_long {
            let message = format!(
                "a key may have {MAX_METADATA_KEY_CHARS} characters and a value \
                 {MAX_METADATA_VALUE_CHARS}"
            );
            return Err(Refusal::new(format!("metadata.{key}"), message));
        }
        pairs.insert(key.clone(), text.to_owned());
    }
    Ok(Some(pairs))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::domain::job::{Auto, Method};

    fn read_json(mut value: Value) -> Result<JobRequest, Refusal> {
        let object = value.as_object_mut().expect("an object");
        object.entry("model").or_insert(json!("base"));
        object.entry("training_file").or_insert(json!("file-1"));
        read(object)
    }

    #[test]
    fn an_explicit_null_is_the_same_as_absence() {
        let nulls = json!({"validation_file": null, "suffix": null, "seed": null, "method": null,
            "hyperparameters": null, "integrations": null, "metadata": null,
            "chat_template": null, "chat_template_kwargs": null, "chat_template_date": null});
        assert_eq!(read_json(nulls), read_json(json!({})));
        assert!(read_json(json!({"integrations": []})).is_ok());
    }

    #[test]
    fn dpo_is_read_with_its_beta() {
        let body = json!({"method": {"type": "dpo",
            "dpo": {"hyperparameters": {"beta": 0.3, "n_epochs": "auto"}}}});
        let read = read_json(body).expect("it is offered");
        assert_eq!(read.hyperparameters.method, Method::Dpo);
        assert_eq!(read.hyperparameters.beta, Auto::Value(0.3));
        let read = read_json(json!({"method": {"type": "dpo"}})).expect("all is left open");
        assert_eq!(read.hyperparameters.method, Method::Dpo);
    }

    #[test]
    fn each_wrong_field_is_named() {
        for (body, param) in [
            (json!({"model": ""}), "model"),
            (json!({"training_file": null}), "training_file"),
            (json!({"suffix": ""}), "suffix"),
            (json!({"suffix": "x".repeat(65)}), "suffix"),
            (json!({"seed": -1}), "seed"),
            (json!({"seed": 2_147_483_648u64}), "seed"),
            (json!({"method": {"type": "reinforcement"}}), "method.type"),
            (json!({"hyperparameters": {"beta": 0.1}}), "hyperparameters.beta"),
            (json!({"integrations": [{"type": "wandb"}]}), "integrations[0].wandb"),
            (json!({"metadata": {"a": 1}}), "metadata.a"),
            (json!({"hyperparameters": 3}), "hyperparameters"),
            (json!({"chat_template": 3}), "chat_template"),
            (json!({"chat_template": ""}), "chat_template"),
            (json!({"chat_template": "{% for m in messages %}"}), "chat_template"),
            (
                json!({"chat_template": format!("{{{{ {} }}}}", "x".repeat(300_000))}),
                "chat_template",
            ),
            (json!({"chat_template_kwargs": "nonsense"}), "chat_template_kwargs"),
            (json!({"chat_template_kwargs": [1]}), "chat_template_kwargs"),
            (json!({"chat_template_kwargs": {"tools": []}}), "chat_template_kwargs.tools"),
            (json!({"chat_template_kwargs": {"bos_token": ""}}), "chat_template_kwargs.bos_token"),
            (json!({"chat_template_kwargs": {"a": "x".repeat(70_000)}}), "chat_template_kwargs"),
            (json!({"chat_template_date": 20240726}), "chat_template_date"),
            (json!({"chat_template_date": "2024-7-26"}), "chat_template_date"),
            (json!({"chat_template_date": "2024-02-30"}), "chat_template_date"),
            (json!({"chat_template_date": "today"}), "chat_template_date"),
            (json!({"control_tokens": "allow"}), "control_tokens"),
            (json!({"control_tokens": true}), "control_tokens"),
        ] {
            assert_eq!(read_json(body.clone()).expect_err("it is wrong").param, param, "{body}");
        }
    }

    #[test]
    fn a_job_may_bring_a_template_with_variables_and_a_date() {
        let body = json!({"chat_template": "{{ messages[0].content }}",
            "chat_template_kwargs": {"enable_thinking": false, "documents": [{"text": "a"}]},
            "chat_template_date": "2024-07-26", "control_tokens": "refuse"});
        let read = read_json(body.clone()).expect("it is valid").chat_template;
        assert_eq!(serde_json::to_value(&read).expect("it is stored"), body);
        let stored: ChatTemplateSettings = serde_json::from_value(body).expect("it is read back");
        assert_eq!(stored, read);
        assert!(read_json(json!({})).expect("it is valid").chat_template.is_default());
    }

    #[test]
    fn unknown_fields_are_named_for_an_event() {
        let body = json!({"colour": "red", "method": {"type": "dpo", "dpo": {"foo": 1}}});
        let read = read_json(body).expect("it is no error");
        assert_eq!(read.unknown_fields, ["colour", "method.dpo.foo"]);
    }
}
