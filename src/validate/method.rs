//! `method` of a job request, and the older `hyperparameters` at the top level.

use serde_json::{Map, Value};

use super::{Refusal, fields, hyperparameters};
use crate::domain::error_code::ErrorCode;
use crate::domain::job::{Hyperparameters, Method};
use crate::util::excerpt::{excerpt, excerpt_of};

/// The field that holds hyperparameters: inside of the method, or at the top level (the older place).
const HYPERPARAMETERS: &str = "hyperparameters";

/// The method and hyperparameters of a request, from both places.
#[derive(Debug, PartialEq)]
pub(super) struct RequestedMethod {
    /// Values that the client leaves open are `Auto`.
    pub(super) hyperparameters: Hyperparameters,
    /// Paths of fields that hone does not use.
    pub(super) unknown_fields: Vec<String>,
}

/// Reads both places. A hyperparameter may be in both when its value is the same.
///
/// # Errors
/// An unknown method or hyperparameter, a wrong value, or two values that differ.
pub(super) fn read(
    method: Option<&Value>,
    legacy: Option<&Value>,
) -> Result<RequestedMethod, Refusal> {
    let mut unknown_fields = Vec::new();
    let (kind, nested) = match method {
        None => (Method::Supervised, None),
        Some(Value::Object(method)) => {
            let kind = kind_of(method)?;
            (kind, nested(method, kind, &mut unknown_fields)?)
        }
        Some(other) => {
            let other = excerpt_of(other);
            let message = format!("method is {other}; it must be an object with a \"type\"");
            return Err(Refusal::new("method", message));
        }
    };
    let path = format!("method.{}.{HYPERPARAMETERS}", kind.as_str());
    let legacy = legacy.map(|value| object(HYPERPARAMETERS, value)).transpose()?;
    let hyperparameters = match (nested, legacy) {
        (None, None) => Hyperparameters { method: kind, ..Hyperparameters::default() },
        (Some(one), None) => hyperparameters::read(&path, one, kind)?,
        (None, Some(one)) => hyperparameters::read(HYPERPARAMETERS, one, kind)?,
        (Some(nested), Some(legacy)) => {
            // Each by itself first, so that an error names the place of the value.
            hyperparameters::read(&path, nested, kind)?;
            hyperparameters::read(HYPERPARAMETERS, legacy, kind)?;
            hyperparameters::read(&path, &merged(&path, nested, legacy)?, kind)?
        }
    };
    Ok(RequestedMethod { hyperparameters, unknown_fields })
}

fn kind_of(method: &Map<String, Value>) -> Result<Method, Refusal> {
    match fields::text(method, "type").map_err(|refusal| refusal.within("method"))?.as_deref() {
        Some("supervised") => Ok(Method::Supervised),
        Some("dpo") => Ok(Method::Dpo),
        Some("reinforcement") => Err(Refusal::with_code(
            ErrorCode::Unsupported,
            "method.type",
            "hone does not offer the method \"reinforcement\"; it offers \"supervised\" and \"dpo\"",
        )),
        Some(other) => {
            let other = excerpt(other);
            let message =
                format!("the type of the method is {other:?}; it can be \"supervised\" or \"dpo\"");
            Err(Refusal::new("method.type", message))
        }
        None => {
            let message = "the type of the method is missing; it can be \"supervised\" or \"dpo\"";
            Err(Refusal::new("method.type", message))
        }
    }
}

/// The hyperparameters inside of `method`, under its own type. Other fields, such as another type's, go to
/// `unknown_fields`.
fn nested<'a>(
    method: &'a Map<String, Value>,
    kind: Method,
    unknown_fields: &mut Vec<String>,
) -> Result<Option<&'a Map<String, Value>>, Refusal> {
    let path = format!("method.{}", kind.as_str());
    let belong = format!("{path}.{HYPERPARAMETERS}");
    let is_misplaced = |name: &str| name == HYPERPARAMETERS || hyperparameters::is_known(name);
    refuse_misplaced("method", method, is_misplaced, &belong)?;
    let known = ["type", kind.as_str()];
    unknown_fields.extend(fields::unknown(method, &known).map(|key| format!("method.{key}")));
    let Some(settings) = fields::given(method, kind.as_str()) else {
        return Ok(None);
    };
    let settings = object(&path, settings)?;
    refuse_misplaced(&path, settings, hyperparameters::is_known, &belong)?;
    unknown_fields
        .extend(fields::unknown(settings, &[HYPERPARAMETERS]).map(|key| format!("{path}.{key}")));
    let nested = fields::given(settings, HYPERPARAMETERS);
    nested.map(|value| object(&format!("{path}.{HYPERPARAMETERS}"), value)).transpose()
}

/// Refuses hyperparameters in a place where they would be ignored.
fn refuse_misplaced(
    path: &str,
    found: &Map<String, Value>,
    is_misplaced: impl Fn(&str) -> bool,
    belong: &str,
) -> Result<(), Refusal> {
    let mut given = found.keys().filter(|name| fields::given(found, name).is_some());
    let Some(name) = given.find(|name| is_misplaced(name)) else {
        return Ok(());
    };
    let message = format!("{path}.{name} has no effect there: hyperparameters belong in {belong}");
    Err(Refusal::new(format!("{path}.{name}"), message))
}

fn object<'a>(path: &str, value: &'a Value) -> Result<&'a Map<String, Value>, Refusal> {
    value.as_object().ok_or_else(|| {
        let value = excerpt_of(value);
        let message = format!("{path} is {value}; it must be an object");
        Refusal::new(path, message)
    })
}

/// The hyperparameters of both places.
fn merged(
    path: &str,
    nested: &Map<String, Value>,
    legacy: &Map<String, Value>,
) -> Result<Map<String, Value>, Refusal> {
    let mut all = nested.clone();
    for (key, value) in legacy.iter().filter(|(_, value)| !value.is_null()) {
        match fields::given(nested, key) {
            Some(other) if !is_same(other, value) => {
                let (value, other) = (excerpt_of(value), excerpt_of(other));
                let message = format!(
                    "{HYPERPARAMETERS}.{key} is {value} and {path}.{key} is {other}: send one of them"
                );
                return Err(Refusal::new(format!("{HYPERPARAMETERS}.{key}"), message));
            }
            _ => {
                all.insert(key.clone(), value.clone());
            }
        }
    }
    Ok(all)
}

/// Whether two values are the same, 1 and 1.0 for example.
fn is_same(one: &Value, other: &Value) -> bool {
    match (one.as_f64(), other.as_f64()) {
        (Some(one), Some(other)) => one == other,
        _ => one == other,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::domain::job::Auto;

    fn ask(method: Value, legacy: Value) -> Result<RequestedMethod, Refusal> {
        read(Some(&method).filter(|v| !v.is_null()), Some(&legacy).filter(|v| !v.is_null()))
    }

    fn supervised(hyperparameters: Value) -> Value {
        json!({"type": "supervised", "supervised": {"hyperparameters": hyperparameters}})
    }

    #[test]
    fn both_places_are_read_and_must_agree_where_both_speak() {
        let two = ask(supervised(json!({"n_epochs": 2})), json!(null));
        assert_eq!(two, ask(json!(null), json!({"n_epochs": 2})));
        assert_eq!(two, ask(supervised(json!({"n_epochs": 2})), json!({"n_epochs": 2})));
        let refusal = ask(supervised(json!({"n_epochs": 2})), json!({"n_epochs": 3}));
        assert_eq!(refusal.expect_err("they differ").param, "hyperparameters.n_epochs");
        let both = ask(
            supervised(json!({"n_epochs": 2, "batch_size": null, "weight_decay": 0})),
            json!({"batch_size": 4, "n_epochs": null, "weight_decay": 0.0}),
        );
        let read = both.expect("they speak of different things").hyperparameters;
        assert_eq!((read.n_epochs, read.batch_size), (Auto::Value(2), Auto::Value(4)));
        let refusal = ask(supervised(json!({})), json!({"nepochs": 3}));
        assert_eq!(refusal.expect_err("it is unknown").param, "hyperparameters.nepochs");
    }

    #[test]
    fn unused_keys_are_named_with_their_place() {
        let method = json!({"type": "supervised", "dpo": {"hyperparameters": {"beta": 0.1}},
            "reinforcement": null, "colour": "red",
            "supervised": {"foo": 1, "bar": null, "hyperparameters": {"n_epochs": 2}}});
        let requested = ask(method, json!(null)).expect("it can be done");
        assert_eq!(
            requested.unknown_fields,
            ["method.dpo", "method.colour", "method.supervised.foo"]
        );
        assert_eq!(requested.hyperparameters.n_epochs, Auto::Value(2));
    }

    #[test]
    fn what_is_no_object_and_what_is_no_method_is_named() {
        for (method, param) in [
            (json!("dpo"), "method"),
            (json!({}), "method.type"),
            (json!({"type": null}), "method.type"),
            (json!({"type": 3}), "method.type"),
            (json!({"type": "ppo"}), "method.type"),
            (json!({"type": "reinforcement"}), "method.type"),
            (json!({"type": "dpo", "dpo": []}), "method.dpo"),
            (json!({"type": "dpo", "hyperparameters": {"n_epochs": 1}}), "method.hyperparameters"),
            (
                json!({"type": "supervised", "supervised": {"n_epochs": 1}}),
                "method.supervised.n_epochs",
            ),
            (json!({"type": "dpo", "dpo": {"lora_r": 4}}), "method.dpo.lora_r"),
            (json!({"type": "dpo", "dpo": {"beta": 0.5}}), "method.dpo.beta"),
            (json!({"type": "supervised", "n_epochs": 1}), "method.n_epochs"),
            (json!({"type": "dpo", "dpo": {"hyperparameters": 3}}), "method.dpo.hyperparameters"),
            (supervised(json!({"nepochs": 1})), "method.supervised.hyperparameters.nepochs"),
        ] {
            let refusal = ask(method.clone(), json!(null)).expect_err("it is wrong");
            assert_eq!(refusal.param, param, "{method}");
        }
    }

    proptest! {
        /// Wherever a client puts each value, and if it puts it twice, it is read the same.
        #[test]
        fn values_may_be_spread_over_both_places(places in prop::collection::vec(0usize..3, 4)) {
            let values = [("n_epochs", json!(2)), ("batch_size", json!("auto")),
                ("weight_decay", json!(0.5)), ("lora_r", json!(4))];
            let all: Map<String, Value> =
                values.iter().map(|(key, value)| (key.to_string(), value.clone())).collect();
            let mut spread = [Map::new(), Map::new()];
            for ((key, value), place) in values.iter().zip(places) {
                for (index, one) in spread.iter_mut().enumerate() {
                    if place == 2 || place == index {
                        one.insert(key.to_string(), value.clone());
                    }
                }
            }
            let [stated, legacy] = spread.map(Value::Object);
            prop_assert_eq!(ask(supervised(stated), legacy), ask(supervised(all.into()), json!(null)));
        }
    }
}
