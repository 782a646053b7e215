//! JSON whose numbers stay as they are written. A schema of a tool may hold integers of any size, which Rust's
//! number types would round.

use std::fmt::{self, Display, Formatter};

use serde::de::IgnoredAny;

/// How deep a document may be nested, as elsewhere in hone.
const MAX_NESTING: usize = 128;

/// Most characters of a number, as Python reads it.
const MAX_NUMBER_LENGTH: usize = 4300;

/// Most characters of a document that an error shows.
const MAX_SHOWN: usize = 20;

/// A JSON document, or a part of one.
#[derive(Debug, Clone, PartialEq)]
pub enum ExactJson {
    /// `null`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A number as it is written.
    Number(String),
    /// A text, its escapes decoded.
    Text(String),
    /// A list.
    List(Vec<ExactJson>),
    /// The keys of an object with their values, in the order in which they are written.
    Object(Vec<(String, ExactJson)>),
}

/// A text is no JSON.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no JSON: {0}")]
pub struct JsonError(String);

impl ExactJson {
    /// Reads a document.
    ///
    /// # Errors
    /// [`JsonError`] names what was expected and what stands there instead.
    pub fn read(text: &str) -> Result<Self, JsonError> {
        let mut reader = Reader { rest: text };
        let value = reader.value(MAX_NESTING)?;
        reader.skip_space();
        if reader.rest.is_empty() { Ok(value) } else { reader.fail("the end") }
    }

    /// The value of a key; `None` where there is none, or where this is no object. The last of repeated keys counts.
    pub fn get(&self, key: &str) -> Option<&Self> {
        let Self::Object(members) = self else { return None };
        members.iter().rev().find(|(name, _)| name == key).map(|(_, value)| value)
    }

    /// As [`Self::get`], to change it.
    pub fn get_mut(&mut self, key: &str) -> Option<&mut Self> {
        let Self::Object(members) = self else { return None };
        members.iter_mut().rev().find(|(name, _)| name == key).map(|(_, value)| value)
    }

    /// The text that this is.
    pub fn as_text(&self) -> Option<&str> {
        if let Self::Text(text) = self { Some(text) } else { None }
    }

    /// The items of the list that this is; none where it is no list.
    pub fn items(&self) -> &[Self] {
        if let Self::List(items) = self { items } else { &[] }
    }

    /// The first text or key in it for which `find` finds something, and what it finds.
    pub fn find_in_texts<T>(&self, find: &dyn Fn(&str) -> Option<T>) -> Option<T> {
        match self {
            Self::Text(text) => find(text),
            Self::List(items) => items.iter().find_map(|item| item.find_in_texts(find)),
            Self::Object(members) => members
                .iter()
                .find_map(|(key, value)| find(key).or_else(|| value.find_in_texts(find))),
            Self::Null | Self::Bool(_) | Self::Number(_) => None,
        }
    }

    /// The same with other texts and keys.
    pub fn map_texts(&self, map: &dyn Fn(&str) -> String) -> Self {
        match self {
            Self::Text(text) => Self::Text(map(text)),
            Self::List(items) => Self::List(items.iter().map(|item| item.map_texts(map)).collect()),
            Self::Object(members) => {
                let members = members.iter();
                Self::Object(members.map(|(key, value)| (map(key), value.map_texts(map))).collect())
            }
            Self::Null | Self::Bool(_) | Self::Number(_) => self.clone(),
        }
    }

    /// Whether this is `null`.
    pub fn is_null(&self) -> bool {
        matches!(self, Self::Null)
    }
}

/// As compact JSON.
impl Display for ExactJson {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("null"),
            Self::Bool(value) => write!(f, "{value}"),
            Self::Number(number) => f.write_str(number),
            Self::Text(text) => write_text(f, text),
            Self::List(items) => {
                f.write_str("[")?;
                for (index, item) in items.iter().enumerate() {
                    let comma = if index > 0 { "," } else { "" };
                    write!(f, "{comma}{item}")?;
                }
                f.write_str("]")
            }
            Self::Object(members) => {
                f.write_str("{")?;
                for (index, (key, value)) in members.iter().enumerate() {
                    f.write_str(if index > 0 { "," } else { "" })?;
                    write_text(f, key)?;
                    write!(f, ":{value}")?;
                }
                f.write_str("}")
            }
        }
    }
}

fn write_text(f: &mut Formatter<'_>, text: &str) -> fmt::Result {
    f.write_str(&serde_json::to_string(text).map_err(|_| fmt::Error)?)
}

struct Reader<'a> {
    rest: &'a str,
}

impl Reader<'_> {
    fn fail<T>(&self, expected: &str) -> Result<T, JsonError> {
        let found: String = self.rest.chars().take(MAX_SHOWN).collect();
        Err(JsonError(format!("expected {expected}, got {found:?}")))
    }

    fn skip_space(&mut self) {
        self.rest = self.rest.trim_start_matches([' ', '\t', '\n', '\r']);
    }

    fn skip(&mut self, token: &str) -> bool {
        self.skip_space();
        let Some(rest) = self.rest.strip_prefix(token) else { return false };
        self.rest = rest;
        true
    }

    fn expect(&mut self, token: &str) -> Result<(), JsonError> {
        if self.skip(token) { Ok(()) } else { self.fail(token) }
    }

    fn value(&mut self, nesting: usize) -> Result<ExactJson, JsonError> {
        self.skip_space();
        let first = self.rest.bytes().next();
        match first {
            Some(b'{' | b'[') if nesting == 0 => {
                Err(JsonError("it is nested too deeply".to_owned()))
            }
            Some(b'{') => self.object(nesting - 1),
            Some(b'[') => self.list(nesting - 1),
            Some(b'"') => self.text().map(ExactJson::Text),
            Some(b't') => self.expect("true").map(|()| ExactJson::Bool(true)),
            Some(b'f') => self.expect("false").map(|()| ExactJson::Bool(false)),
            Some(b'n') => self.expect("null").map(|()| ExactJson::Null),
            _ => self.number(),
        }
    }

    fn object(&mut self, nesting: usize) -> Result<ExactJson, JsonError> {
        self.expect("{")?;
        let mut members = Vec::new();
        if self.skip("}") {
            return Ok(ExactJson::Object(members));
        }
        loop {
            self.skip_space();
            let key = self.text()?;
            self.expect(":")?;
            members.push((key, self.value(nesting)?));
            if !self.skip(",") {
                self.expect("}")?;
                return Ok(ExactJson::Object(members));
            }
        }
    }

    fn list(&mut self, nesting: usize) -> Result<ExactJson, JsonError> {
        self.expect("[")?;
        let mut items = Vec::new();
        if self.skip("]") {
            return Ok(ExactJson::List(items));
        }
        loop {
            items.push(self.value(nesting)?);
            if !self.skip(",") {
                self.expect("]")?;
                return Ok(ExactJson::List(items));
            }
        }
    }

    /// A text, with its escapes decoded by the parser that the rest of hone uses.
    fn text(&mut self) -> Result<String, JsonError> {
        let mut is_escaped = false;
        let end = self.rest.bytes().enumerate().skip(1).find(|(_, byte)| {
            let ends = *byte == b'"' && !is_escaped;
            is_escaped = *byte == b'\\' && !is_escaped;
            ends
        });
        let Some((end, _)) = end.filter(|_| self.rest.starts_with('"')) else {
            return self.fail("a text in quotes");
        };
        let (quoted, rest) = self.rest.split_at(end + 1);
        let text = serde_json::from_str(quoted).map_err(|error| JsonError(error.to_string()))?;
        self.rest = rest;
        Ok(text)
    }

    fn number(&mut self) -> Result<ExactJson, JsonError> {
        let is_part = |byte: u8| byte.is_ascii_digit() || b"+-.eE".contains(&byte);
        let end = self.rest.bytes().position(|byte| !is_part(byte)).unwrap_or(self.rest.len());
        let (number, rest) = self.rest.split_at(end);
        // Checks the form: no leading zeros, digits around the point.
        if serde_json::from_str::<IgnoredAny>(number).is_err() {
            return self.fail("a value");
        }
        if number.len() > MAX_NUMBER_LENGTH {
            let length = number.len();
            return Err(JsonError(format!(
                "a number has {length} characters; {MAX_NUMBER_LENGTH} at most"
            )));
        }
        self.rest = rest;
        Ok(ExactJson::Number(number.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_is_written_with_every_digit() {
        let text = r#"{"a":[1,-0,12345678901234567890123,1e-07,0.10,true,false,null],"b":"é\n\"\\","":{}}"#;
        let spaced = text.replace(':', " : ").replace(",\"", ",\n \"");
        for form in [text, &spaced] {
            assert_eq!(ExactJson::read(form).expect("it is JSON").to_string(), text);
        }
        let value = ExactJson::read(text).expect("it is JSON");
        assert_eq!(value.get("a").map(|list| list.items().len()), Some(8));
        assert_eq!(value.get("b").and_then(ExactJson::as_text), Some("é\n\"\\"));
    }

    #[test]
    fn what_other_parsers_refuse_is_refused() {
        let deep = "[".repeat(200) + &"]".repeat(200);
        let wrong =
            ["", "{", "[1,]", "{\"a\":}", "01", "1.", "NaN", "'a'", "\"a", "1 2", "{a:1}", &deep];
        for text in wrong {
            assert!(ExactJson::read(text).is_err(), "{text}");
            assert!(serde_json::from_str::<serde_json::Value>(text).is_err(), "{text}");
        }
        let long = format!("{{{}", "x".repeat(10_000));
        let error = ExactJson::read(&long).expect_err("it is no JSON");
        assert!(error.to_string().len() < 200, "{error}");
    }
}
