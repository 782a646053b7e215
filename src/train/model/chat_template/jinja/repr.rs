//! How Python prints values: `str()` and `repr()`.

use std::borrow::Cow;

use super::super::markers::RESERVED;
use super::budget::{self, check_text_bytes};
use super::dict::Dict;
use super::error::Error;
use super::object::Object;
use super::text::Text;
use super::value::Value;
use super::{float, unicode};

/// `str()`: texts as they are, everything else as `repr()` has it; nothing for what is undefined.
pub(crate) fn to_text(value: &Value) -> Result<Cow<'_, str>, Error> {
    Ok(match value {
        Value::Text(text) | Value::Markup(text) => Cow::Borrowed(text),
        Value::Undefined(_) => Cow::Borrowed(""),
        other => Cow::Owned(repr(other)?),
    })
}

/// `str()` as a value that shares a text that it is already.
pub(crate) fn to_shared(value: &Value) -> Result<Text, Error> {
    match value {
        Value::Text(text) | Value::Markup(text) => Ok(text.clone()),
        other => Ok(Text::from(&*to_text(other)?)),
    }
}

/// `repr()`.
pub(crate) fn repr(value: &Value) -> Result<String, Error> {
    let mut out = String::new();
    push(value, &mut out)?;
    Ok(out)
}

fn push(value: &Value, out: &mut String) -> Result<(), Error> {
    check_text_bytes(out.len())?;
    budget::descend()?;
    let result = push_value(value, out);
    budget::ascend();
    result
}

fn push_value(value: &Value, out: &mut String) -> Result<(), Error> {
    match value {
        Value::Undefined(_) => out.push_str("Undefined"),
        Value::None => out.push_str("None"),
        Value::Bool(true) => out.push_str("True"),
        Value::Bool(false) => out.push_str("False"),
        Value::Int(value) => out.push_str(&value.to_text(10)?),
        Value::Float(value) => out.push_str(&float::repr(*value)),
        Value::Text(text) => push_text(text, out)?,
        Value::Markup(text) => {
            out.push_str("Markup(");
            push_text(text, out)?;
            out.push(')');
        }
        Value::List(items) => push_items(items, ["[", "]"], out)?,
        Value::Tuple(items) if items.len() == 1 => {
            push_items(items, ["(", ",)"], out)?;
        }
        Value::Tuple(items) => push_items(items, ["(", ")"], out)?,
        Value::Dict(dict) => push_dict(dict, out)?,
        Value::Object(object) => push_object(&***object, out)?,
    }
    Ok(())
}

fn push_dict(dict: &Dict, out: &mut String) -> Result<(), Error> {
    out.push('{');
    for (index, (key, value)) in dict.iter().enumerate() {
        if index > 0 {
            out.push_str(", ");
        }
        push(key, out)?;
        out.push_str(": ");
        push(value, out)?;
    }
    out.push('}');
    Ok(())
}

fn push_object(object: &dyn Object, out: &mut String) -> Result<(), Error> {
    out.push_str(&object.repr()?);
    Ok(())
}

fn push_items(items: &[Value], brackets: [&str; 2], out: &mut String) -> Result<(), Error> {
    out.push_str(brackets[0]);
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            out.push_str(", ");
        }
        push(item, out)?;
    }
    out.push_str(brackets[1]);
    Ok(())
}

/// A text in quotes: single ones, unless it holds those and no double ones.
fn push_text(text: &str, out: &mut String) -> Result<(), Error> {
    budget::charge_text(text.len().saturating_mul(4))?;
    check_text_bytes(out.len() + text.len())?;
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for character in text.chars() {
        match character {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            other if other == quote => {
                out.push('\\');
                out.push(other);
            }
            other if unicode::is_printable(other) => out.push(other),
            other => push_code(other, out),
        }
    }
    out.push(quote);
    check_text_bytes(out.len())
}

/// `\x7f`, `\u200b` or `\U000e0001`.
fn push_code(character: char, out: &mut String) {
    let code = u32::from(character);
    out.push_str(&match code {
        0..=0xff => format!("\\x{code:02x}"),
        0x100..=0xffff => format!("\\u{code:04x}"),
        _ => format!("\\U{code:08x}"),
    });
}

/// `ascii()`: `repr()` with everything beyond ASCII escaped, but for characters that stand for something.
pub(crate) fn ascii(value: &Value) -> Result<String, Error> {
    let mut out = String::new();
    for character in repr(value)?.chars() {
        if character.is_ascii() || RESERVED.contains(&character) {
            out.push(character);
        } else {
            push_code(character, &mut out);
        }
    }
    Ok(out)
}
