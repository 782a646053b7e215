//! HTML: texts that are it already, and what becomes of others among them.

use std::borrow::Cow;

use super::budget;
use super::error::Error;
use super::repr;
use super::value::Value;

/// What the characters of HTML become.
const ENTITIES: [(char, &str); 5] =
    [('&', "&amp;"), ('<', "&lt;"), ('>', "&gt;"), ('\'', "&#39;"), ('"', "&#34;")];

/// A value as HTML: texts that are it already stay.
///
/// # Errors
/// The value cannot be printed, or its text becomes too long.
pub(crate) fn escaped(value: &Value) -> Result<Cow<'_, str>, Error> {
    let text = repr::to_text(value)?;
    if matches!(value, Value::Markup(_)) {
        return Ok(text);
    }
    escaped_text(&text).map(Cow::Owned)
}

/// A text with entities for the characters of HTML.
///
/// # Errors
/// The text becomes too long.
pub(crate) fn escaped_text(text: &str) -> Result<String, Error> {
    budget::charge_text(text.len())?;
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match ENTITIES.iter().find(|(special, _)| *special == character) {
            Some((_, entity)) => {
                out.push_str(entity);
                budget::check_text_bytes(out.len())?;
            }
            None => out.push(character),
        }
    }
    Ok(out)
}
