//! The keys of a GGUF file, read with errors that name them.

use std::collections::HashMap;
use std::path::Path;

use candle_core::quantized::gguf_file::Value;

use crate::train::model::error::LoadError;

/// The keys of one file.
pub(super) struct Metadata<'a> {
    values: &'a HashMap<String, Value>,
    path: &'a Path,
}

impl<'a> Metadata<'a> {
    pub(super) fn new(values: &'a HashMap<String, Value>, path: &'a Path) -> Self {
        Self { values, path }
    }

    pub(super) fn error(&self, key: &str, what: &str) -> LoadError {
        LoadError::malformed(self.path, format!("the key {key:?} {what}"))
    }

    pub(super) fn optional(&self, key: &str) -> Option<&Value> {
        self.values.get(key)
    }

    fn get(&self, key: &str) -> Result<&Value, LoadError> {
        self.optional(key).ok_or_else(|| self.error(key, "is missing"))
    }

    pub(super) fn text(&self, key: &str) -> Result<&str, LoadError> {
        match self.get(key)? {
            Value::String(text) => Ok(text),
            _ => Err(self.error(key, "is not a text")),
        }
    }

    pub(super) fn optional_text(&self, key: &str) -> Result<Option<&str>, LoadError> {
        self.optional(key).map(|_| self.text(key)).transpose()
    }

    pub(super) fn size(&self, key: &str) -> Result<usize, LoadError> {
        let size = whole(self.get(key)?).and_then(|size| usize::try_from(size).ok());
        size.filter(|size| *size > 0).ok_or_else(|| self.error(key, "is not a positive number"))
    }

    pub(super) fn optional_size(&self, key: &str) -> Result<Option<usize>, LoadError> {
        self.optional(key).map(|_| self.size(key)).transpose()
    }

    pub(super) fn number(&self, key: &str) -> Result<f64, LoadError> {
        match self.get(key)? {
            // Written from a number of 64 bits: its shortest text is what was meant.
            Value::F32(number) => Ok(number.to_string().parse().unwrap_or(f64::from(*number))),
            Value::F64(number) => Ok(*number),
            _ => Err(self.error(key, "is not a number")),
        }
    }

    pub(super) fn optional_number(&self, key: &str) -> Result<Option<f64>, LoadError> {
        self.optional(key).map(|_| self.number(key)).transpose()
    }

    pub(super) fn optional_flag(&self, key: &str) -> Result<Option<bool>, LoadError> {
        match self.optional(key) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(_) => Err(self.error(key, "is neither true nor false")),
        }
    }

    /// The id of a token.
    pub(super) fn optional_id(&self, key: &str) -> Result<Option<u32>, LoadError> {
        let Some(value) = self.optional(key) else { return Ok(None) };
        match whole(value).and_then(|id| u32::try_from(id).ok()) {
            Some(id) => Ok(Some(id)),
            None => Err(self.error(key, "is not the id of a token")),
        }
    }

    pub(super) fn list(&self, key: &str) -> Result<&[Value], LoadError> {
        match self.get(key)? {
            Value::Array(list) => Ok(list),
            _ => Err(self.error(key, "is not a list")),
        }
    }

    pub(super) fn texts(&self, key: &str) -> Result<Vec<String>, LoadError> {
        let mut texts = Vec::new();
        for value in self.list(key)? {
            match value {
                Value::String(text) => texts.push(text.clone()),
                _ => return Err(self.error(key, "is not a list of texts")),
            }
        }
        Ok(texts)
    }

    pub(super) fn wholes(&self, key: &str) -> Result<Vec<i64>, LoadError> {
        let numbers = self.list(key)?.iter().map(whole).collect::<Option<Vec<i64>>>();
        numbers.ok_or_else(|| self.error(key, "is not a list of whole numbers"))
    }

    pub(super) fn floats(&self, key: &str) -> Result<Vec<f32>, LoadError> {
        let mut floats = Vec::new();
        for value in self.list(key)? {
            match value {
                Value::F32(number) => floats.push(*number),
                _ => return Err(self.error(key, "is not a list of 32-bit floats")),
            }
        }
        Ok(floats)
    }
}

/// A whole number of any width.
pub(super) fn whole(value: &Value) -> Option<i64> {
    match value {
        Value::U8(n) => Some(i64::from(*n)),
        Value::I8(n) => Some(i64::from(*n)),
        Value::U16(n) => Some(i64::from(*n)),
        Value::I16(n) => Some(i64::from(*n)),
        Value::U32(n) => Some(i64::from(*n)),
        Value::I32(n) => Some(i64::from(*n)),
        Value::U64(n) => i64::try_from(*n).ok(),
        Value::I64(n) => Some(*n),
        _ => None,
    }
}
