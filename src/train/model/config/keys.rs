//! The keys of `config.json`, each read with its type.

use serde_json::{Map, Value};

use crate::train::model::error::LoadError;

/// Reads keys of a configuration, with errors that name them.
pub(super) struct ConfigKeys<'a>(pub(super) &'a Map<String, Value>);

impl ConfigKeys<'_> {
    pub(super) fn error(reason: String) -> LoadError {
        LoadError::Malformed { path: "config.json".to_owned(), reason }
    }

    pub(super) fn get(&self, key: &str) -> Option<&Value> {
        self.0.get(key).filter(|value| !value.is_null())
    }

    pub(super) fn size(&self, key: &str) -> Result<usize, LoadError> {
        self.optional_size(key)?.ok_or_else(|| Self::error(format!("{key:?} is missing")))
    }

    pub(super) fn optional_size(&self, key: &str) -> Result<Option<usize>, LoadError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        match value.as_u64() {
            Some(size) if size > 0 && size < 1 << 32 => Ok(Some(size as usize)),
            _ => Err(Self::error(format!("{key:?} is {value}, not a positive whole number"))),
        }
    }

    pub(super) fn number(&self, key: &str) -> Result<Option<f64>, LoadError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        match value.as_f64() {
            Some(number) => Ok(Some(number)),
            None => Err(Self::error(format!("{key:?} is {value}, not a number"))),
        }
    }

    pub(super) fn flag(&self, key: &str, otherwise: bool) -> Result<bool, LoadError> {
        let Some(value) = self.get(key) else {
            return Ok(otherwise);
        };
        value.as_bool().ok_or_else(|| Self::error(format!("{key:?} is {value}, not true or false")))
    }

    pub(super) fn text(&self, key: &str) -> Option<&str> {
        self.get(key).and_then(Value::as_str)
    }

    pub(super) fn numbers(&self, key: &str) -> Result<Vec<f64>, LoadError> {
        let list = self.get(key).and_then(Value::as_array);
        let numbers = list.and_then(|list| list.iter().map(Value::as_f64).collect());
        numbers.ok_or_else(|| Self::error(format!("{key:?} is not a list of numbers")))
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
