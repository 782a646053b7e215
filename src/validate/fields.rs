//! Fields of a JSON body, in which an explicit null is the same as absence.

use serde_json::{Map, Value};

use super::Refusal;

/// The value of a field, if it is there.
pub(super) fn given<'a>(body: &'a Map<String, Value>, key: &str) -> Option<&'a Value> {
    body.get(key).filter(|value| !value.is_null())
}

/// A field that holds a text.
pub(super) fn text(body: &Map<String, Value>, key: &str) -> Result<Option<String>, Refusal> {
    match given(body, key) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(other) => Err(Refusal::new(key, format!("{key} is {other}; it must be a text"))),
    }
}

/// A text that must be there and not be empty.
pub(super) fn required_text(body: &Map<String, Value>, key: &str) -> Result<String, Refusal> {
    match text(body, key)? {
        Some(text) if !text.is_empty() => Ok(text),
        _ => Err(Refusal::new(key, format!("{key} is missing"))),
    }
}

/// Keys beside those that are known.
pub(super) fn others<'a>(
    body: &'a Map<String, Value>,
    known: &'a [&str],
) -> impl Iterator<Item = &'a String> {
    let is_other = |key: &&String| !known.contains(&key.as_str()) && given(body, key).is_some();
    body.keys().filter(is_other)
}
