//! The keys of `config.json`, each read with its type.

use serde_json::{Map, Value};

use crate::train::model::error::LoadError;
use crate::util::excerpt::excerpt_of;

/// Reads keys of a configuration, with errors that name them.
pub(super) struct ConfigKeys<'a>(pub(super) &'a Map<String, Value>);

impl ConfigKeys<'_> {
    pub(super) fn error(reason: String) -> LoadError {
        LoadError::Malformed { path: "config.json".to_owned(), reason }
    }

    pub(super) fn get(&self, key: &str) -> Option<&Value> {
        self.0.get(key).filter(|value| !value.is_null())
    }

    /// A size, from 1 to `most`: what a file says is never allocated before it is looked at.
    pub(super) fn size(&self, key: &str, most: usize) -> Result<usize, LoadError> {
        self.optional_size(key, most)?.ok_or_else(|| Self::error(format!("{key:?} is missing")))
    }

    pub(super) fn optional_size(&self, key: &str, most: usize) -> Result<Option<usize>, LoadError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        match value.as_u64() {
            Some(size) if size > 0 && size <= most as u64 => Ok(Some(size as usize)),
            _ => {
                let found = excerpt_of(value);
                Err(Self::error(format!("{key:?} is {found}, not a whole number from 1 to {most}")))
            }
        }
    }

    /// A number that 32-bit arithmetic can hold.
    pub(super) fn number(&self, key: &str) -> Result<Option<f64>, LoadError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        match value.as_f64() {
            Some(number) if (number as f32).is_finite() => Ok(Some(number)),
            _ => Err(Self::error(format!("{key:?} is {}, not a number", excerpt_of(value)))),
        }
    }

    /// A number above 0.
    pub(super) fn positive(&self, key: &str) -> Result<Option<f64>, LoadError> {
        match self.number(key)? {
            Some(number) if number as f32 <= 0.0 => {
                Err(Self::error(format!("{key:?} is {number}, not a number above 0")))
            }
            number => Ok(number),
        }
    }

    /// What a norm adds to a variance: a number from 0 to below 1.
    pub(super) fn epsilon(&self, key: &str, otherwise: f64) -> Result<f32, LoadError> {
        let epsilon = self.number(key)?.unwrap_or(otherwise);
        if !(0.0..1.0).contains(&epsilon) {
            return Err(Self::error(format!(
                "{key:?} is {epsilon}, not a number from 0 to below 1"
            )));
        }
        Ok(epsilon as f32)
    }

    pub(super) fn flag(&self, key: &str, otherwise: bool) -> Result<bool, LoadError> {
        let Some(value) = self.get(key) else {
            return Ok(otherwise);
        };
        value.as_bool().ok_or_else(|| {
            Self::error(format!("{key:?} is {}, not true or false", excerpt_of(value)))
        })
    }

    pub(super) fn text(&self, key: &str) -> Option<&str> {
        self.get(key).and_then(Value::as_str)
    }

    pub(super) fn numbers(&self, key: &str) -> Result<Vec<f64>, LoadError> {
        let list = self.get(key).and_then(Value::as_array);
        let is_positive = |number: &f64| *number as f32 > 0.0 && (*number as f32).is_finite();
        let number = |value: &Value| value.as_f64().filter(is_positive);
        let numbers = list.and_then(|list| list.iter().map(number).collect());
        numbers.ok_or_else(|| Self::error(format!("{key:?} is not a list of numbers above 0")))
    }

    /// How rotary positions are scaled.
    pub(super) fn rope_type(&self) -> &str {
        self.text("rope_type").or_else(|| self.text("type")).unwrap_or("default")
    }

    /// LongRoPE (Ding et al. 2024), which the first Phi-3 called `su`.
    pub(super) fn is_long_rope(&self) -> bool {
        matches!(self.rope_type(), "longrope" | "su")
    }
}
