//! Attributes that filters look up by a path such as `function.name`.

use super::super::budget;
use super::super::error::Error;
use super::super::integer::Integer;
use super::super::subscripts;
use super::super::value::Value;

/// The way to an attribute.
pub(super) struct Path(Vec<Value>);

impl Path {
    /// A path: names with dots between them, a number, or nothing for the value itself.
    pub(super) fn new(attribute: &Value) -> Self {
        let part = |part: &str| {
            let is_number = !part.is_empty() && part.chars().all(|digit| digit.is_ascii_digit());
            match Integer::parse(part, 10).filter(|_| is_number) {
                Some(number) => Value::Int(number),
                None => Value::from(part),
            }
        };
        Self(match attribute {
            Value::None => Vec::new(),
            other => match other.as_text() {
                Some(path) => path.split('.').map(part).collect(),
                None => vec![other.clone()],
            },
        })
    }

    /// Several paths with commas between them.
    pub(super) fn list(attribute: &Value) -> Vec<Self> {
        match attribute.as_text() {
            Some(paths) => paths.split(',').map(|path| Self::new(&Value::from(path))).collect(),
            None => vec![Self::new(attribute)],
        }
    }

    /// What lies at the end of the path; the default wherever something on the way is not there.
    pub(super) fn of(&self, value: &Value, default: Option<&Value>) -> Result<Value, Error> {
        let mut value = value.clone();
        for part in &self.0 {
            value = subscripts::item(&value, part)?;
            if let Some(default) = default.filter(|default| !matches!(default, Value::None))
                && value.is_undefined()
            {
                value = default.clone();
            }
        }
        Ok(value)
    }
}

/// A text in lower case; other values as they are.
pub(super) fn ignore_case(value: Value) -> Value {
    match value.as_text() {
        Some(text) => {
            budget::count_text(text.len());
            text.to_lowercase().into()
        }
        None => value,
    }
}
