//! The JSON bodies of webhook endpoints. The address of the URL is checked later, because that takes a DNS
//! query.

use serde_json::{Map, Value};

use super::Refusal;
use super::fields::BodyFields;
use crate::domain::webhook::{EndpointChange, EventType};
use crate::util::excerpt::{excerpt, excerpt_of};

/// Longest name.
const MAX_NAME_CHARS: usize = 256;

/// A valid request to create an endpoint.
#[derive(Debug, PartialEq, Eq)]
pub struct NewEndpoint {
    /// For people.
    pub name: String,
    /// Target of the deliveries.
    pub url: String,
    /// Subscribed event types, each once.
    pub event_types: Vec<String>,
}

/// The fields of a request to create or change an endpoint.
pub const ENDPOINT_FIELDS: &[&str] = &["name", "url", "event_types"];

/// The fields of a request to rotate a secret.
pub const ROTATE_FIELDS: &[&str] = &[KEEP_OLD_SECRET];

/// The fields of a request to send a test event.
pub const TEST_FIELDS: &[&str] = &["event_type"];

/// Whether the old secret stays valid for a day.
const KEEP_OLD_SECRET: &str = "keep_old_secret_active_for_24_hours";

/// Reads a request to create an endpoint.
pub fn read(body: &Map<String, Value>) -> Result<NewEndpoint, Refusal> {
    let change = read_change(body)?;
    let missing = |field: &str| Refusal::new(field, format!("{field} is missing"));
    Ok(NewEndpoint {
        name: change.name.ok_or_else(|| missing("name"))?,
        url: change.url.ok_or_else(|| missing("url"))?,
        event_types: change.event_types.ok_or_else(|| {
            let message = format!("event_types is missing; it can hold {}", sent_types());
            Refusal::new("event_types", message)
        })?,
    })
}

/// Reads a request to change an endpoint. Every field is optional.
pub fn read_change(body: &Map<String, Value>) -> Result<EndpointChange, Refusal> {
    let fields = BodyFields::new(body, ENDPOINT_FIELDS);
    fields.refuse_unknown()?;
    let name = fields.text("name")?;
    if let Some(name) = &name
        && !(1..=MAX_NAME_CHARS).contains(&name.chars().count())
    {
        let message = format!("name must have 1 to {MAX_NAME_CHARS} characters");
        return Err(Refusal::new("name", message));
    }
    let event_types = fields.get("event_types").map(event_types).transpose()?;
    Ok(EndpointChange { name, url: fields.text("url")?, event_types })
}

/// Reads whether the old secret stays valid for a day.
pub fn read_rotation(body: &Map<String, Value>) -> Result<bool, Refusal> {
    let fields = BodyFields::new(body, ROTATE_FIELDS);
    fields.refuse_unknown()?;
    match fields.get(KEEP_OLD_SECRET) {
        None => Ok(false),
        Some(Value::Bool(keep)) => Ok(*keep),
        Some(other) => {
            let other = excerpt_of(other);
            let message = format!("{KEEP_OLD_SECRET} is {other}; it must be true or false");
            Err(Refusal::new(KEEP_OLD_SECRET, message))
        }
    }
}

/// Reads the type of a test event.
pub fn read_test(body: &Map<String, Value>) -> Result<EventType, Refusal> {
    let fields = BodyFields::new(body, TEST_FIELDS);
    fields.refuse_unknown()?;
    let name = fields.required_text("event_type")?;
    EventType::parse(&name).ok_or_else(|| {
        let shown = excerpt(&name);
        let message = match EventType::ELSEWHERE.contains(&name.as_str()) {
            true => format!(
                "hone never sends {shown:?}, so there is no test event of it; it sends {}",
                sent_types()
            ),
            false => format!("the event type {shown:?} is unknown; hone sends {}", sent_types()),
        };
        Refusal::new("event_type", message)
    })
}

/// The event types that an endpoint subscribes to. Types that only OpenAI sends are allowed beside those of
/// hone, because one receiver may serve both. An endpoint that would never get a delivery is refused.
fn event_types(value: &Value) -> Result<Vec<String>, Refusal> {
    let refused = |message: String| Err(Refusal::new("event_types", message));
    let Some(list) = value.as_array() else {
        return refused(format!(
            "event_types must be a list of texts; it can hold {}",
            sent_types()
        ));
    };
    let mut names: Vec<String> = Vec::new();
    for (index, one) in list.iter().enumerate() {
        let name = one.as_str().unwrap_or_default();
        if EventType::parse(name).is_none() && !EventType::ELSEWHERE.contains(&name) {
            let one = excerpt_of(one);
            let message = format!("the event type {one} is unknown; hone sends {}", sent_types());
            return Err(Refusal::new(format!("event_types[{index}]"), message));
        }
        if !names.iter().any(|known| known == name) {
            names.push(name.to_owned());
        }
    }
    if !names.iter().any(|name| EventType::parse(name).is_some()) {
        return refused(format!(
            "event_types holds no type that hone sends: name at least one of {}",
            sent_types()
        ));
    }
    Ok(names)
}

/// The event types that hone sends, for error texts.
fn sent_types() -> String {
    let names: Vec<&str> = EventType::ALL.iter().map(|one| one.as_str()).collect();
    names.join(", ")
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
    fn a_test_event_has_a_type_that_hone_sends() {
        let read = |name: &str| read_test(json!({"event_type": name}).as_object().expect("one"));
        assert_eq!(read("fine_tuning.job.succeeded"), Ok(EventType::JobSucceeded));
        for wrong in ["", "batch.failed", "nothing"] {
            assert_eq!(read(wrong).expect_err("it is wrong").param, "event_type");
        }
    }
}
