//! JSON as values: integers of any size stay whole, numbers with a fraction become Python's floats.

use super::error::Error;
use super::integer::Integer;
use super::value::{Dict, Key, Value};

/// How deep JSON may be nested, as elsewhere in hone.
const MAX_NESTING: usize = 128;

/// JSON that has been parsed already.
pub(crate) fn from_json(json: &serde_json::Value) -> Value {
    match json {
        serde_json::Value::Null => Value::None,
        serde_json::Value::Bool(value) => Value::Bool(*value),
        serde_json::Value::Number(number) => from_number(number),
        serde_json::Value::String(text) => Value::from(text.as_str()),
        serde_json::Value::Array(items) => Value::list(items.iter().map(from_json).collect()),
        serde_json::Value::Object(object) => {
            let mut dict = Dict::with_capacity(object.len());
            for (key, value) in object {
                dict.insert(Key::text(key), from_json(value));
            }
            Value::dict(dict)
        }
    }
}

fn from_number(number: &serde_json::Number) -> Value {
    if let Some(small) = number.as_i64() {
        return Value::int(small);
    }
    match number.as_u64() {
        Some(large) => Value::Int(num_bigint::BigInt::from(large).into()),
        None => Value::Float(number.as_f64().unwrap_or(f64::NAN)),
    }
}

/// JSON as it is written; numbers keep every digit.
///
/// # Errors
/// The text is no JSON.
pub(crate) fn from_text(text: &str) -> Result<Value, Error> {
    let mut reader = Reader { rest: text };
    let value = reader.value(MAX_NESTING)?;
    reader.skip_space();
    if reader.rest.is_empty() { Ok(value) } else { reader.fail("the end") }
}

struct Reader<'a> {
    rest: &'a str,
}

impl Reader<'_> {
    fn fail<T>(&self, expected: &str) -> Result<T, Error> {
        let found: String = self.rest.chars().take(20).collect();
        Err(Error::new(format!("no JSON: expected {expected}, got {found:?}")))
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

    fn expect(&mut self, token: &str) -> Result<(), Error> {
        if self.skip(token) { Ok(()) } else { self.fail(token) }
    }

    fn value(&mut self, nesting: usize) -> Result<Value, Error> {
        self.skip_space();
        let first = self.rest.bytes().next();
        match first {
            Some(b'{' | b'[') if nesting == 0 => Err(Error::new("the JSON is nested too deeply")),
            Some(b'{') => self.object(nesting - 1),
            Some(b'[') => self.array(nesting - 1),
            Some(b'"') => self.text().map(Value::from),
            Some(b't') => self.expect("true").map(|()| Value::Bool(true)),
            Some(b'f') => self.expect("false").map(|()| Value::Bool(false)),
            Some(b'n') => self.expect("null").map(|()| Value::None),
            _ => self.number(),
        }
    }

    fn object(&mut self, nesting: usize) -> Result<Value, Error> {
        self.expect("{")?;
        let mut dict = Dict::default();
        if self.skip("}") {
            return Ok(Value::dict(dict));
        }
        loop {
            self.skip_space();
            let key = Key::text(&self.text()?);
            self.expect(":")?;
            dict.insert(key, self.value(nesting)?);
            if !self.skip(",") {
                self.expect("}")?;
                return Ok(Value::dict(dict));
            }
        }
    }

    fn array(&mut self, nesting: usize) -> Result<Value, Error> {
        self.expect("[")?;
        let mut items = Vec::new();
        if self.skip("]") {
            return Ok(Value::list(items));
        }
        loop {
            items.push(self.value(nesting)?);
            if !self.skip(",") {
                self.expect("]")?;
                return Ok(Value::list(items));
            }
        }
    }

    /// A text, with its escapes decoded by the parser that the rest of hone uses.
    fn text(&mut self) -> Result<String, Error> {
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
        let text = serde_json::from_str(quoted)
            .map_err(|error| Error::new(format!("no JSON: {error}")))?;
        self.rest = rest;
        Ok(text)
    }

    fn number(&mut self) -> Result<Value, Error> {
        let is_part = |byte: u8| byte.is_ascii_digit() || b"+-.eE".contains(&byte);
        let end = self.rest.bytes().position(|byte| !is_part(byte)).unwrap_or(self.rest.len());
        let (number, rest) = self.rest.split_at(end);
        // Checks the form: no leading zeros, digits around the point.
        let is_number = serde_json::from_str::<serde::de::IgnoredAny>(number).is_ok();
        let value = if number.contains(['.', 'e', 'E']) {
            number.parse().ok().map(Value::Float)
        } else {
            Integer::parse(number, 10).map(Value::Int)
        };
        let Some(value) = value.filter(|_| is_number) else { return self.fail("a value") };
        self.rest = rest;
        Ok(value)
    }
}
