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
    let mut kept = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find('<') {
        let tag = &rest[start..];
        let end = match tag.strip_prefix("<!--") {
            Some(comment) => comment.find("-->").map(|end| end + 7),
            None => tag.find('>').map(|end| end + 1),
        };
        let Some(end) = end else { break };
        kept.push_str(&rest[..start]);
        rest = &tag[end..];
    }
    kept.push_str(rest);
    let text = string_parts::split(&kept, None, None, false)?.join(" ");
    Ok(unescape(&text))
}

/// Most characters of an entity's name or number.
const MAX_ENTITY: usize = 32;

fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('&') {
        out.push_str(before);
        match entity(after) {
            Some((character, length)) => {
                out.extend(character);
                rest = &after[length..];
            }
            None => {
                out.push('&');
                rest = after;
            }
        }
    }
    out.push_str(rest);
    out
}

/// The character of an entity, and how many bytes it has behind its `&`. Some need no semicolon.
fn entity(text: &str) -> Option<(Option<char>, usize)> {
    let is_end = |c: char| matches!(c, '\t' | '\n' | '\u{c}' | ' ' | '<' | '&' | ';');
    let mut length = 0;
    for character in text.chars().take(MAX_ENTITY) {
        if is_end(character) {
            break;
        }
        length += character.len_utf8();
    }
    let name = &text[..length];
    let has_end = text[length..].starts_with(';');
    if let Some(number) = name.strip_prefix('#') {
        let (digits, base) = match number.strip_prefix(['x', 'X']) {
            Some(digits) => (digits, 16),
            None => (number, 10),
        };
        let end = digits.find(|c: char| !c.is_digit(base)).unwrap_or(digits.len());
        if end == 0 {
            return None;
        }
        let code = u32::from_str_radix(&digits[..end], base).unwrap_or(u32::MAX);
        let start = length - (digits.len() - end);
        let closes = usize::from(text[start..].starts_with(';'));
        return Some((numbered(code), start + closes));
    }
    if has_end && let Some(character) = named(name) {
        return Some((Some(character), length + 1));
    }
    let begins = |old: &&str| name.starts_with(*old);
    let old = ["amp", "lt", "gt", "quot", "nbsp", "copy"].into_iter().find(begins)?;
    Some((Some(named(old)?), old.len()))
}

/// What browsers show for the codes of controls that Windows uses for characters.
const WINDOWS: &str = "€\u{81}‚ƒ„…†‡ˆ‰Š‹Œ\u{8d}Ž\u{8f}\u{90}‘’“”•–—˜™š›œ\u{9d}žŸ";

/// The character of a number; none for controls and what is no character.
fn numbered(code: u32) -> Option<char> {
    match code {
        0 | 0xd800..=0xdfff | 0x11_0000.. => Some('\u{fffd}'),
        0x80..=0x9f => WINDOWS.chars().nth(usize::try_from(code - 0x80).unwrap_or(0)),
        1..=8 | 0xb | 0xe..=0x1f | 0x7f | 0xfdd0..=0xfdef => None,
        _ if code & 0xfffe == 0xfffe => None,
        _ => char::from_u32(code),
    }
}

fn named(entity: &str) -> Option<char> {
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
            budget::check_text_bytes(out.len())?;
            out.push('%');
            out.extend(
                [byte >> 4, byte & 15].map(|digit| char::from(HEXADECIMAL[usize::from(digit)])),
            );
        }
    }
    budget::check_text_bytes(out.len())?;
    Ok(out)
}
