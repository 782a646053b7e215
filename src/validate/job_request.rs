//! The body of `POST /v1/fine_tuning/jobs`: what it asks for, before anything is looked up.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::{Refusal, fields, hyperparameters};
use crate::error_code::ErrorCode;
use crate::job::{Hyperparameters, Method};

/// A request that makes sense by itself.
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
    /// What is left open is `Auto`.
    pub hyperparameters: Hyperparameters,
    /// The client's own notes.
    pub metadata: Option<BTreeMap<String, String>>,
    /// Fields that hone does not know: said in an event, not an error.
    pub unknown_fields: Vec<String>,
}

const KNOWN: &[&str] = &[
    "model",
    "training_file",
    "validation_file",
    "suffix",
    "seed",
    "method",
    "hyperparameters",
    "integrations",
    "metadata",
];

const MAX_SUFFIX_CHARS: usize = 64;
const MAX_SEED: u64 = 2_147_483_647;
const MAX_METADATA_PAIRS: usize = 16;
const MAX_METADATA_KEY_CHARS: usize = 64;
const MAX_METADATA_VALUE_CHARS: usize = 512;

/// Reads a request; an explicit null is the same as absence.
pub fn read(body: &Map<String, Value>) -> Result<JobRequest, Refusal> {
    let given = |key: &str| fields::given(body, key);
    let text = |key: &str| fields::text(body, key);
    let required = |key: &str| fields::required_text(body, key);
    if given("integrations").is_some_and(|value| value.as_array().is_none_or(|l| !l.is_empty())) {
        return Err(Refusal::with_code(
            ErrorCode::Unsupported,
            "integrations",
            "hone pushes to no integration; W&B can pull the job and its CSV through this API",
        ));
    }
    Ok(JobRequest {
        model: required("model")?,
        training_file: required("training_file")?,
        validation_file: text("validation_file")?,
        suffix: suffix(text("suffix")?)?,
        seed: seed(given("seed"))?,
        hyperparameters: all_hyperparameters(given("method"), given("hyperparameters"))?,
        metadata: metadata(given("metadata"))?,
        unknown_fields: body.keys().filter(|key| !KNOWN.contains(&key.as_str())).cloned().collect(),
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
            let message =
                format!("the seed is {value}; it must be a whole number up to {MAX_SEED}");
            Err(Refusal::new("seed", message))
        }
    }
}

/// The hyperparameters of `method`, or the older ones at the top level; both only if they agree.
fn all_hyperparameters(
    method: Option<&Value>,
    legacy: Option<&Value>,
) -> Result<Hyperparameters, Refusal> {
    let kind = match method {
        None => Method::Supervised,
        Some(method) => kind_of(method)?,
    };
    let legacy = match legacy {
        None => None,
        Some(Value::Object(object)) => {
            Some(hyperparameters::read("hyperparameters", object, kind)?)
        }
        Some(other) => {
            let message = format!("hyperparameters is {other}; it must be an object");
            return Err(Refusal::new("hyperparameters", message));
        }
    };
    let path = format!("method.{}.hyperparameters", kind.as_str());
    let stated = match method.map(|method| &method[kind.as_str()]["hyperparameters"]) {
        None | Some(Value::Null) => None,
        Some(Value::Object(object)) => Some(hyperparameters::read(&path, object, kind)?),
        Some(other) => {
            let message = format!("{path} is {other}; it must be an object");
            return Err(Refusal::new(path, message));
        }
    };
    match (stated, legacy) {
        (Some(stated), Some(legacy)) if stated != legacy => {
            let message = format!("hyperparameters and {path} differ: send one of them");
            Err(Refusal::new("hyperparameters", message))
        }
        (Some(one), _) | (None, Some(one)) => Ok(one),
        (None, None) => Ok(Hyperparameters { method: kind, ..Hyperparameters::default() }),
    }
}

fn kind_of(method: &Value) -> Result<Method, Refusal> {
    match method["type"].as_str() {
        Some("supervised") => Ok(Method::Supervised),
        Some("dpo") => Ok(Method::Dpo),
        Some("reinforcement") => Err(Refusal::with_code(
            ErrorCode::Unsupported,
            "method.type",
            "hone does not offer the method \"reinforcement\"; it offers \"supervised\" and \"dpo\"",
        )),
        _ => {
            let message = format!(
                "the type of the method is {}; it can be \"supervised\" or \"dpo\"",
                method["type"]
            );
            Err(Refusal::new("method.type", message))
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
    use crate::job::Auto;

    fn read_json(mut value: Value) -> Result<JobRequest, Refusal> {
        let object = value.as_object_mut().expect("an object");
        object.entry("model").or_insert(json!("base"));
        object.entry("training_file").or_insert(json!("file-1"));
        read(object)
    }

    #[test]
    fn an_explicit_null_is_the_same_as_absence() {
        let nulls = json!({"validation_file": null, "suffix": null, "seed": null, "method": null,
            "hyperparameters": null, "integrations": null, "metadata": null});
        assert_eq!(read_json(nulls), read_json(json!({})));
        assert!(read_json(json!({"integrations": []})).is_ok());
    }

    #[test]
    fn both_spellings_of_hyperparameters_are_read_and_must_agree() {
        let new = json!({"method": {"type": "supervised",
            "supervised": {"hyperparameters": {"n_epochs": 2}}}});
        let old = json!({"hyperparameters": {"n_epochs": 2}});
        assert_eq!(read_json(new.clone()), read_json(old));
        let mut both = new;
        both["hyperparameters"] = json!({"n_epochs": 2});
        let read = read_json(both.clone()).expect("they agree");
        assert_eq!(read.hyperparameters.n_epochs, Auto::Value(2));
        both["hyperparameters"] = json!({"n_epochs": 3});
        assert_eq!(read_json(both).expect_err("they differ").param, "hyperparameters");
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
            (
                json!({"method": {"type": "dpo", "dpo": {"hyperparameters": 3}}}),
                "method.dpo.hyperparameters",
            ),
            (json!({"hyperparameters": {"beta": 0.1}}), "hyperparameters.beta"),
            (json!({"method": {}}), "method.type"),
            (json!({"integrations": [{"type": "wandb"}]}), "integrations"),
            (json!({"metadata": {"a": 1}}), "metadata.a"),
            (json!({"hyperparameters": 3}), "hyperparameters"),
            (
                json!({"method": {"type": "supervised",
                    "supervised": {"hyperparameters": {"nepochs": 1}}}}),
                "method.supervised.hyperparameters.nepochs",
            ),
        ] {
            assert_eq!(read_json(body.clone()).expect_err("it is wrong").param, param, "{body}");
        }
    }

    #[test]
    fn unknown_fields_are_kept_for_an_event() {
        let read = read_json(json!({"colour": "red"})).expect("it is no error");
        assert_eq!(read.unknown_fields, ["colour"]);
    }
}
