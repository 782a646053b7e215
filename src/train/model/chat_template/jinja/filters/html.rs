//! Filters for HTML and addresses.

use super::super::arguments::Arguments;
use super::super::error::Error;
use super::super::value::Value;
use super::super::{budget, markup, repr, string_parts};

/// What a filter makes of a value; `escapes` says whether the template escapes what it writes.
pub(super) fn apply(
    name: &str,
    value: &Value,
    arguments: Arguments,
    escapes: bool,
) -> Result<Value, Error> {
    if name == "xmlattr" {
        let [space] = arguments.bind(name, ["autospace"], 0)?;
        let text = attributes(value, space.is_none_or(|space| space.is_true()))?;
        return Ok(if escapes { Value::Markup(text.into()) } else { text.into() });
    }
    let [] = arguments.bind(name, [], 0)?;
    let html = |text: String| Ok(Value::Markup(text.into()));
    match name {
        "e" | "escape" => html(markup::escaped(value)?.into_owned()),
        "forceescape" => html(markup::escaped_text(&repr::to_text(value)?)?),
        "safe" => Ok(Value::Markup(repr::to_shared(value)?)),
        "striptags" => strip_tags(&repr::to_text(value)?).map(Value::from),
        _ => url_encode(value).map(Value::from),
    }
}

fn attributes(value: &Value, has_space: bool) -> Result<String, Error> {
    let Value::Dict(dict) = value else {
        return Err(Error::new(format!("'{}' object has no attribute 'items'", value.type_name())));
    };
    let mut text = String::new();
    for (key, value) in dict.iter() {
        if matches!(value, Value::None | Value::Undefined(_)) {
            continue;
        }
        let name = key.as_text().ok_or_else(|| Error::new("names of attributes must be texts"))?;
        if name.contains([' ', '\t', '\n', '\r', '\u{b}', '\u{c}', '/', '>', '=']) {
            return Err(Error::new(format!("Invalid character in attribute name: {name:?}")));
        }
        if has_space || !text.is_empty() {
            text.push(' ');
        }
        text.push_str(&markup::escaped(key)?);
        text.push_str("=\"");
        text.push_str(&markup::escaped(value)?);
        text.push('"');
        budget::charge_text(name.len())?;
        budget::check_text_bytes(text.len())?;
    }
    Ok(text)
}

/// A text without comments and tags, white space joined, and the commonest entities decoded.
fn strip_tags(text: &str) -> Result<String, Error> {
    budget::charge_text(text.len().saturating_mul(4))?;
    let text = without_tags(&without_comments(text));
    let text = string_parts::split(&text, None, None, false)?.join(" ");
    Ok(unescape(&text))
}

/// What is left of a text without its comments. What stands around one may begin another.
fn without_comments(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    loop {
        // How much of the beginning of a comment stands before the rest.
        let joined = ["<!-", "<!", "<"].into_iter().find(|begin| {
            out.ends_with(begin) && rest.starts_with(&BEGIN_OF_COMMENT[begin.len()..])
        });
        let start = match joined {
            Some(begin) => out.len() - begin.len(),
            None => match rest.find(BEGIN_OF_COMMENT) {
                Some(at) => {
                    out.push_str(&rest[..at]);
                    rest = &rest[at..];
                    out.len()
                }
                None => break,
            },
        };
        let behind = match joined {
            Some("<!-") if rest.starts_with("->") => Some(2),
            _ => rest.find(END_OF_COMMENT).map(|at| at + END_OF_COMMENT.len()),
        };
        let Some(behind) = behind else { break };
        out.truncate(start);
        rest = &rest[behind..];
    }
    out.push_str(rest);
    out
}

const BEGIN_OF_COMMENT: &str = "<!--";
const END_OF_COMMENT: &str = "-->";

fn without_tags(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, tag)) = rest.split_once('<') {
        let Some((_, after)) = tag.split_once('>') else { break };
        out.push_str(before);
        rest = after;
    }
    out.push_str(rest);
    out
}

/// Longest entity: a number may have zeros before its digits.
const MAX_ENTITY_BYTES: usize = 32;

fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find('&') {
        out.push_str(&rest[..start]);
        rest = &rest[start..];
        let end = rest.bytes().take(MAX_ENTITY_BYTES).position(|byte| byte == b';');
        let entity = end.map(|end| &rest[1..end]);
        let Some((entity, character)) = entity.and_then(|name| Some((name, decoded(name)?))) else {
            out.push('&');
            rest = &rest[1..];
            continue;
        };
        out.push(character);
        rest = &rest[entity.len() + 2..];
    }
    out.push_str(rest);
    out
}

fn decoded(entity: &str) -> Option<char> {
    if let Some(number) = entity.strip_prefix('#') {
        let code = match number.strip_prefix(['x', 'X']) {
            Some(digits) => u32::from_str_radix(digits, 16),
            None => number.parse(),
        };
        return code.ok().and_then(char::from_u32);
    }
    Some(match entity {
        "amp" => '&',
        "lt" => '<',
        "gt" => '>',
        "quot" => '"',
        "apos" => '\'',
        "nbsp" => '\u{a0}',
        "copy" => '©',
        "hellip" => '…',
        "mdash" => '—',
        "ndash" => '–',
        _ => return None,
    })
}

fn url_encode(value: &Value) -> Result<String, Error> {
    let pairs = match value {
        Value::Dict(dict) => dict.iter().map(|(key, value)| (key.clone(), value.clone())).collect(),
        other => match other.try_iterate().filter(|_| other.as_text().is_none()) {
            None => return quote(&repr::to_text(other)?, "/"),
            Some(items) => {
                let mut pairs = Vec::new();
                for pair in items {
                    let pair = pair?.to_vec()?;
                    let [key, value] = pair.as_slice() else {
                        return Err(Error::new("urlencode needs pairs of keys and values"));
                    };
                    budget::check_items(pairs.len())?;
                    pairs.push((key.clone(), value.clone()));
                }
                pairs
            }
        },
    };
    let quoted = |value: &Value| -> Result<String, Error> {
        Ok(quote(&repr::to_text(value)?, "")?.replace("%20", "+"))
    };
    let mut out = String::new();
    for (key, value) in &pairs {
        if !out.is_empty() {
            out.push('&');
        }
        out.push_str(&quoted(key)?);
        out.push('=');
        out.push_str(&quoted(value)?);
        budget::check_text_bytes(out.len())?;
    }
    Ok(out)
}

const HEXADECIMAL: &[u8; 16] = b"0123456789ABCDEF";

fn quote(text: &str, safe: &str) -> Result<String, Error> {
    budget::charge_text(text.len().saturating_mul(4))?;
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        let character = char::from(byte);
        if byte.is_ascii_alphanumeric() || "_.-~".contains(character) || safe.contains(character) {
            out.push(character);
        } else {
            out.push('%');
            out.extend(
                [byte >> 4, byte & 15].map(|digit| char::from(HEXADECIMAL[usize::from(digit)])),
            );
        }
    }
    budget::check_text_bytes(out.len())?;
    Ok(out)
}
