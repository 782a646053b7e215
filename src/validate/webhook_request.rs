//! Reads the JSON bodies of webhook endpoints. Where the address leads is not judged here: that takes a
//! look-up.

use serde_json::{Map, Value};

use super::{Refusal, fields};
use crate::domain::webhook::{EndpointChange, EventType};

/// Longest name.
const MAX_NAME_CHARS: usize = 256;

/// A request to make an endpoint.
#[derive(Debug, PartialEq, Eq)]
pub struct NewEndpoint {
    /// For people.
    pub name: String,
    /// Where deliveries shall go.
    pub url: String,
    /// What it asks for, each once.
    pub event_types: Vec<String>,
}

/// Reads a request to make an endpoint.
pub fn read(body: &Map<String, Value>) -> Result<NewEndpoint, Refusal> {
    let change = read_change(body)?;
    let missing = |field: &str| Refusal::new(field, format!("{field} is missing"));
    Ok(NewEndpoint {
        name: change.name.ok_or_else(|| missing("name"))?,
        url: change.url.ok_or_else(|| missing("url"))?,
        event_types: change.event_types.ok_or_else(|| {
            let message = format!("event_types is missing; it can hold {}", told());
            Refusal::new("event_types", message)
        })?,
    })
}

/// Reads a request to change an endpoint, of which every field may be left out.
pub fn read_change(body: &Map<String, Value>) -> Result<EndpointChange, Refusal> {
    only(body, &["name", "url", "event_types"])?;
    let name = fields::text(body, "name")?;
    if let Some(name) = &name
        && !(1..=MAX_NAME_CHARS).contains(&name.chars().count())
    {
        let message = format!("name must have 1 to {MAX_NAME_CHARS} characters");
        return Err(Refusal::new("name", message));
    }
    let event_types = fields::given(body, "event_types").map(event_types).transpose()?;
    Ok(EndpointChange { name, url: fields::text(body, "url")?, event_types })
}

/// Reads whether the old secret goes on signing for a day.
pub fn read_rotation(body: &Map<String, Value>) -> Result<bool, Refusal> {
    const KEEP: &str = "keep_old_secret_active_for_24_hours";
    only(body, &[KEEP])?;
    match fields::given(body, KEEP) {
        None => Ok(false),
        Some(Value::Bool(keep)) => Ok(*keep),
        Some(other) => {
            Err(Refusal::new(KEEP, format!("{KEEP} is {other}; it must be true or false")))
        }
    }
}

/// Reads which event a sample is wanted of.
pub fn read_test(body: &Map<String, Value>) -> Result<EventType, Refusal> {
    only(body, &["event_type"])?;
    let name = fields::required_text(body, "event_type")?;
    EventType::parse(&name).ok_or_else(|| {
        let message = match EventType::ELSEWHERE.contains(&name.as_str()) {
            true => format!(
                "hone never tells {name:?}, so there is no sample of it; it tells {}",
                told()
            ),
            false => format!("the event type {name:?} is unknown; hone tells {}", told()),
        };
        Refusal::new("event_type", message)
    })
}

/// What an endpoint asks for. Whoever comes from OpenAI may name what only OpenAI tells, beside what
/// hone tells: one receiver may serve both. An endpoint that would never be told anything is refused.
fn event_types(value: &Value) -> Result<Vec<String>, Refusal> {
    let refused = |message: String| Err(Refusal::new("event_types", message));
    let Some(list) = value.as_array() else {
        return refused(format!("event_types must be a list of texts; it can hold {}", told()));
    };
    let mut names: Vec<String> = Vec::new();
    for (index, one) in list.iter().enumerate() {
        let name = one.as_str().unwrap_or_default();
        if EventType::parse(name).is_none() && !EventType::ELSEWHERE.contains(&name) {
            let message = format!("the event type {one} is unknown; hone tells {}", told());
            return Err(Refusal::new(format!("event_types[{index}]"), message));
        }
        if !names.iter().any(|known| known == name) {
            names.push(name.to_owned());
        }
    }
    if !names.iter().any(|name| EventType::parse(name).is_some()) {
        return refused(format!(
            "event_types holds nothing that hone ever tells: name at least one of {}",
            told()
        ));
    }
    Ok(names)
}

/// What hone tells, for messages.
fn told() -> String {
    let names: Vec<&str> = EventType::ALL.iter().map(|one| one.as_str()).collect();
    names.join(", ")
}

/// Refuses fields that would be ignored.
fn only(body: &Map<String, Value>, known: &[&str]) -> Result<(), Refusal> {
    match body.keys().find(|key| !known.contains(&key.as_str())) {
        None => Ok(()),
        Some(key) => {
            let shown: String = key.chars().take(MAX_NAME_CHARS).collect();
            let message =
                format!("there is no field {shown:?} here; there is {}", known.join(", "));
            Err(Refusal::new(shown, message))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn body(changes: Value) -> Map<String, Value> {
        let mut body = json!({"name": "n", "url": "https://example.com/hook",
            "event_types": ["fine_tuning.job.failed"]});
        let object = body.as_object_mut().expect("an object");
        object.extend(changes.as_object().expect("an object").clone());
        object.clone()
    }

    #[test]
    fn each_wrong_field_is_named() {
        for (changes, param) in [
            (json!({"name": null}), "name"),
            (json!({"name": ""}), "name"),
            (json!({"name": 3}), "name"),
            (json!({"name": "é".repeat(257)}), "name"),
            (json!({"url": null}), "url"),
            (json!({"url": []}), "url"),
            (json!({"event_types": null}), "event_types"),
            (json!({"event_types": "fine_tuning.job.failed"}), "event_types"),
            (json!({"event_types": []}), "event_types"),
            (json!({"event_types": ["batch.failed"]}), "event_types"),
            (json!({"event_types": ["fine_tuning.job.failed", "job.failed"]}), "event_types[1]"),
            (json!({"event_types": [null]}), "event_types[0]"),
            (json!({"secret": "mine"}), "secret"),
        ] {
            let refused = read(&body(changes.clone())).expect_err("it is wrong");
            assert_eq!(refused.param, param, "{changes}");
            if param.starts_with("event_types") {
                assert!(refused.message.contains("fine_tuning.job.cancelled"), "{refused:?}");
            }
        }
        let all = json!({"name": "é".repeat(256),
            "event_types": ["batch.failed", "fine_tuning.job.failed", "batch.failed"]});
        let read = read(&body(all)).expect("it is good");
        assert_eq!(read.event_types, ["batch.failed", "fine_tuning.job.failed"]);
    }

    #[test]
    fn a_rotation_ends_the_old_secret_unless_it_says_otherwise() {
        let read = |body: Value| read_rotation(body.as_object().expect("an object"));
        assert_eq!(read(json!({})), Ok(false));
        assert_eq!(read(json!({"keep_old_secret_active_for_24_hours": true})), Ok(true));
        assert!(read(json!({"keep_old_secret_active_for_24_hours": "yes"})).is_err());
        assert!(read(json!({"keep": true})).is_err());
    }

    #[test]
    fn a_sample_is_of_an_event_that_hone_tells() {
        let read = |name: &str| read_test(json!({"event_type": name}).as_object().expect("one"));
        assert_eq!(read("fine_tuning.job.succeeded"), Ok(EventType::JobSucceeded));
        for wrong in ["", "batch.failed", "nothing"] {
            assert_eq!(read(wrong).expect_err("it is wrong").param, "event_type");
        }
    }
}
