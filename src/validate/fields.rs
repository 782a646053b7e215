//! Fields of a JSON body. An explicit null is the same as absence.

use serde_json::{Map, Value};

use super::Refusal;
use crate::util::excerpt::{excerpt, excerpt_of};

/// The body of a request together with the names of its fields, which the OpenAPI document lists too.
#[derive(Debug, Clone, Copy)]
pub struct BodyFields<'a> {
    body: &'a Map<String, Value>,
    known: &'static [&'static str],
}

impl<'a> BodyFields<'a> {
    /// A body whose fields have the names `known`.
    pub fn new(body: &'a Map<String, Value>, known: &'static [&'static str]) -> Self {
        Self { body, known }
    }

    /// The value of a field, if it is there.
    pub fn get(&self, name: &str) -> Option<&'a Value> {
        // A field that nobody lists is not there, so that no parser can read one past the document.
        given(self.body, name).filter(|_value| self.known.contains(&name))
    }

    /// The value of a field that is refused when it is there, so that the document does not list it.
    pub fn get_unsupported(&self, name: &str) -> Option<&'a Value> {
        given(self.body, name).filter(|_value| !self.known.contains(&name))
    }

    /// A field that holds a text.
    pub fn text(&self, name: &str) -> Result<Option<String>, Refusal> {
        text_of(self.get(name), name)
    }

    /// A text that must be there and not be empty.
    pub fn required_text(&self, name: &str) -> Result<String, Refusal> {
        not_empty(self.text(name)?, name)
    }

    /// The names of fields beside the known ones.
    pub(super) fn unknown(&self) -> impl Iterator<Item = &'a String> {
        unknown(self.body, self.known)
    }

    /// Refuses fields that would be ignored.
    pub(super) fn refuse_unknown(&self) -> Result<(), Refusal> {
        match self.body.keys().find(|name| !self.known.contains(&name.as_str())) {
            None => Ok(()),
            Some(name) => {
                let shown = excerpt(name);
                let message =
                    format!("the field {shown:?} is unknown; known are {}", self.known.join(", "));
                Err(Refusal::new(name.as_str(), message))
            }
        }
    }
}

/// The value of a field, if it is there.
pub(super) fn given<'a>(object: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    object.get(name).filter(|value| !value.is_null())
}

/// A field that holds a text.
pub(super) fn text(object: &Map<String, Value>, name: &str) -> Result<Option<String>, Refusal> {
    text_of(given(object, name), name)
}

fn text_of(value: Option<&Value>, name: &str) -> Result<Option<String>, Refusal> {
    match value {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(other) => {
            let other = excerpt_of(other);
            Err(Refusal::new(name, format!("{name} is {other}; it must be a text")))
        }
    }
}

fn not_empty(text: Option<String>, name: &str) -> Result<String, Refusal> {
    text.filter(|text| !text.is_empty())
        .ok_or_else(|| Refusal::new(name, format!("{name} is missing")))
}

/// A text that must be there and not be empty.
pub(super) fn required_text(object: &Map<String, Value>, name: &str) -> Result<String, Refusal> {
    not_empty(text(object, name)?, name)
}

/// The names of fields beside the known ones.
pub(super) fn unknown<'a>(
    object: &'a Map<String, Value>,
    known: &[&str],
) -> impl Iterator<Item = &'a String> {
    let is_unknown =
        |name: &&String| !known.contains(&name.as_str()) && given(object, name).is_some();
    object.keys().filter(is_unknown)
}
