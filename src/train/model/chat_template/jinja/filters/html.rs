//! Filters for HTML and addresses.

use super::super::error::Error;
use super::super::operators::escape;
use super::super::value::{Arguments, Value};
use super::super::{repr, string_parts};

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
    let markup = |text: String| Ok(Value::Markup(text.into()));
    match name {
        "e" | "escape" => markup(escape(value)?),
        "forceescape" => markup(escape(&Value::from(repr::to_text(value)?.into_owned()))?),
        "safe" => markup(repr::to_text(value)?.into_owned()),
        "striptags" => strip_tags(&repr::to_text(value)?).map(Value::from),
        _ => url_encode(value).map(Value::from),
    }
}

fn attributes(value: &Value, has_space: bool) -> Result<String, Error> {
    let Value::Dict(dict) = value else {
        return Err(Error::new(format!("'{}' object has no attribute 'items'", value.type_name())));
    };
    let mut parts = Vec::new();
    for (key, value) in dict.iter() {
        if matches!(value, Value::None | Value::Undefined(_)) {
            continue;
        }
        let name = key.as_text().ok_or_else(|| Error::new("names of attributes must be texts"))?;
        if name.contains([' ', '\t', '\n', '\r', '\u{b}', '\u{c}', '/', '>', '=']) {
            return Err(Error::new(format!("Invalid character in attribute name: {name:?}")));
        }
        parts.push(format!("{}=\"{}\"", escape(key)?, escape(value)?));
    }
    let text = parts.join(" ");
    Ok(if has_space && !text.is_empty() { format!(" {text}") } else { text })
}

/// A text without comments and tags, white space joined, and the commonest entities decoded.
fn strip_tags(text: &str) -> Result<String, Error> {
    let mut text = text.to_owned();
    for (begin, end) in [("<!--", "-->"), ("<", ">")] {
        while let Some(start) = text.find(begin) {
            let Some(length) = text[start..].find(end) else { break };
            text.replace_range(start..start + length + end.len(), "");
        }
    }
    let text = string_parts::split(&text, None, None, false)?.join(" ");
    Ok(unescape(&text))
}

fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find('&') {
        out.push_str(&rest[..start]);
        rest = &rest[start..];
        let entity = rest.find(';').map(|end| &rest[1..end]);
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
            None => return Ok(quote(&repr::to_text(other)?, "/")),
            Some(items) => {
                let mut pairs = Vec::new();
                for pair in items {
                    let pair = pair?.to_vec()?;
                    let [key, value] = pair.as_slice() else {
                        return Err(Error::new("urlencode needs pairs of keys and values"));
                    };
                    pairs.push((key.clone(), value.clone()));
                }
                pairs
            }
        },
    };
    let quoted = |value: &Value| -> Result<String, Error> {
        Ok(quote(&repr::to_text(value)?, "").replace("%20", "+"))
    };
    let mut parts = Vec::new();
    for (key, value) in &pairs {
        parts.push(format!("{}={}", quoted(key)?, quoted(value)?));
    }
    Ok(parts.join("&"))
}

fn quote(text: &str, safe: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        let character = char::from(byte);
        if byte.is_ascii_alphanumeric() || "_.-~".contains(character) || safe.contains(character) {
            out.push(character);
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}
