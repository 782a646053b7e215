//! `bytes`: what `text.encode()` gives.

use std::any::Any;
use std::rc::Rc;

use super::super::markers::RESERVED;
use super::arguments::{Arguments, optional_text};
use super::budget;
use super::error::Error;
use super::globals::Function;
use super::object::Object;
use super::slice::index_of;
use super::value::Value;

/// How texts become bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Encoding {
    Utf8,
    Ascii,
    Latin1,
}

/// What becomes of what cannot be written or read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum OnError {
    Fail,
    Leave,
    Replace,
}

fn options(name: &str, arguments: Arguments) -> Result<(Encoding, OnError), Error> {
    let [encoding, errors] = arguments.bind(name, ["encoding", "errors"], 0)?;
    let encoding = match optional_text(encoding.as_ref())?.map(str::to_ascii_lowercase).as_deref() {
        None | Some("utf-8" | "utf8" | "utf_8") => Encoding::Utf8,
        Some("ascii" | "us-ascii") => Encoding::Ascii,
        Some("latin-1" | "latin1" | "iso-8859-1") => Encoding::Latin1,
        Some(other) => {
            return Err(Error::new(format!("the encoding '{other}' is not supported")));
        }
    };
    let on_error = match optional_text(errors.as_ref())? {
        None | Some("strict") => OnError::Fail,
        Some("ignore") => OnError::Leave,
        Some("replace") => OnError::Replace,
        Some(other) => {
            return Err(Error::new(format!("errors='{other}' is not supported")));
        }
    };
    Ok((encoding, on_error))
}

/// `text.encode(encoding, errors)`.
///
/// # Errors
/// Encodings that are not known, and characters that have no bytes in one.
pub(crate) fn encode(text: &str, arguments: Arguments) -> Result<Value, Error> {
    let (encoding, on_error) = options("encode", arguments)?;
    budget::charge_text(text.len())?;
    let last = match encoding {
        Encoding::Utf8 => return Ok(Bytes::value(text.as_bytes().to_vec())),
        Encoding::Ascii => '\u{7f}',
        Encoding::Latin1 => '\u{ff}',
    };
    let mut bytes = Vec::with_capacity(text.len());
    for character in text.chars() {
        match (u8::try_from(character).ok().filter(|_| character <= last), on_error) {
            (Some(byte), _) => bytes.push(byte),
            (None, OnError::Leave) => {}
            (None, OnError::Replace) => bytes.push(b'?'),
            (None, OnError::Fail) => {
                return Err(Error::new(format!("the encoding has no bytes for {character:?}")));
            }
        }
    }
    Ok(Bytes::value(bytes))
}

/// Bytes, whose memory is counted.
struct Content(Vec<u8>);

impl Drop for Content {
    fn drop(&mut self) {
        budget::give_bytes(self.0.len());
    }
}

struct Bytes(Rc<Content>);

impl Bytes {
    fn value(bytes: Vec<u8>) -> Value {
        budget::take_bytes(bytes.len());
        Value::object(Self(Rc::new(Content(bytes))))
    }

    fn all(&self) -> &[u8] {
        &self.0.0
    }
}

fn decode(bytes: &[u8], arguments: Arguments) -> Result<Value, Error> {
    let (encoding, on_error) = options("decode", arguments)?;
    budget::charge_text(bytes.len())?;
    if encoding == Encoding::Latin1 {
        let text: String = bytes.iter().copied().map(char::from).collect();
        budget::check_text_bytes(text.len())?;
        return Ok(text.into());
    }
    let mut out = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            match encoding == Encoding::Utf8 || character.is_ascii() {
                true => out.push(character),
                false => push_wrong(character.len_utf8(), on_error, &mut out)?,
            }
        }
        if !chunk.invalid().is_empty() {
            let wrong = if encoding == Encoding::Utf8 { 1 } else { chunk.invalid().len() };
            push_wrong(wrong, on_error, &mut out)?;
        }
    }
    budget::check_text_bytes(out.len())?;
    Ok(out.into())
}

fn push_wrong(count: usize, on_error: OnError, out: &mut String) -> Result<(), Error> {
    match on_error {
        OnError::Fail => return Err(Error::new("the bytes are no text in this encoding")),
        OnError::Leave => {}
        OnError::Replace => out.extend(std::iter::repeat_n('\u{fffd}', count)),
    }
    Ok(())
}

impl Object for Bytes {
    fn type_name(&self) -> &'static str {
        "bytes"
    }

    fn repr(&self) -> Result<String, Error> {
        budget::charge_text(self.all().len().saturating_mul(4))?;
        budget::check_text_bytes(self.all().len().saturating_mul(4))?;
        // Characters that stand for something while a template renders would be lost.
        let text = String::from_utf8_lossy(self.all());
        if text.contains(|character| RESERVED.contains(&character)) {
            return Err(Error::new("the template prints a text of the conversation as bytes"));
        }
        let quote =
            if self.all().contains(&b'\'') && !self.all().contains(&b'"') { '"' } else { '\'' };
        let mut out = format!("b{quote}");
        for byte in self.all() {
            match char::from(*byte) {
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\\' => out.push_str("\\\\"),
                other if other == quote => out.extend(['\\', other]),
                other if other == ' ' || other.is_ascii_graphic() => out.push(other),
                _ => out.push_str(&format!("\\x{byte:02x}")),
            }
        }
        out.push(quote);
        Ok(out)
    }

    fn attribute(&self, name: &str) -> Option<Value> {
        if name != "decode" {
            return None;
        }
        let bytes = self.0.clone();
        Some(Function::value("decode", move |arguments| decode(&bytes.0, arguments)))
    }

    fn item(&self, position: i64) -> Option<Value> {
        index_of(self.all().len(), position).and_then(|index| self.nth(index))
    }

    fn nth(&self, index: usize) -> Option<Value> {
        self.all().get(index).map(|byte| Value::int(i64::from(*byte)))
    }

    fn is_iterable(&self) -> bool {
        true
    }

    fn length(&self) -> Option<usize> {
        Some(self.all().len())
    }

    fn is_sequence(&self) -> bool {
        true
    }

    fn equals(&self, other: &dyn Object) -> bool {
        other.as_any().downcast_ref::<Self>().is_some_and(|other| self.all() == other.all())
    }

    fn hash(&self) -> Option<u64> {
        Some(
            self.all()
                .iter()
                .fold(0, |hash: u64, byte| hash.wrapping_mul(31).wrapping_add(u64::from(*byte))),
        )
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
