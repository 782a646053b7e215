//! Arguments as the types that functions and methods take.

use super::error::Error;
use super::value::Value;

/// The text of an argument that must be one.
pub(crate) fn required_text(value: &Value) -> Result<&str, Error> {
    value.as_text().ok_or_else(|| Error::new(format!("must be str, not {}", value.type_name())))
}

/// The text of an argument that may be missing or `None`.
pub(crate) fn optional_text(value: Option<&Value>) -> Result<Option<&str>, Error> {
    match value {
        None | Some(Value::None) => Ok(None),
        Some(value) => required_text(value).map(Some),
    }
}

/// A whole number that may be missing.
pub(crate) fn whole(value: Option<&Value>, default: i64) -> Result<i64, Error> {
    let Some(value) = value else { return Ok(default) };
    value.as_integer().map(|value| value.saturating()).ok_or_else(|| {
        Error::new(format!("'{}' object cannot be interpreted as an integer", value.type_name()))
    })
}
