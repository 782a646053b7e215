//! Methods of texts: those of Python's `str`.

use std::collections::BTreeSet;

use super::arguments::{Arguments, optional_text, required_text, whole};
use super::brace_format::{self, Lookup};
use super::budget::{self, check_text_bytes};
use super::dict::{Dict, Key};
use super::error::Error;
use super::value::Value;
use super::{bytes, character_classes, padding, string_parts, unicode};

/// What a text offers.
pub(crate) const NAMES: &[&str] = &[
    "capitalize",
    "casefold",
    "center",
    "count",
    "encode",
    "endswith",
    "expandtabs",
    "find",
    "format",
    "format_map",
    "index",
    "isalnum",
    "isalpha",
    "isascii",
    "isdecimal",
    "isdigit",
    "isidentifier",
    "islower",
    "isnumeric",
    "isprintable",
    "isspace",
    "istitle",
    "isupper",
    "join",
    "ljust",
    "lower",
    "lstrip",
    "maketrans",
    "partition",
    "removeprefix",
    "removesuffix",
    "replace",
    "rfind",
    "rindex",
    "rjust",
    "rpartition",
    "rsplit",
    "rstrip",
    "split",
    "splitlines",
    "startswith",
    "strip",
    "swapcase",
    "title",
    "translate",
    "upper",
    "zfill",
];

/// Calls a method. `lookup` finds what the fields of `format` name.
pub(crate) fn call(
    text: &str,
    name: &str,
    arguments: Arguments,
    lookup: Lookup,
) -> Result<Value, Error> {
    charge(text, name)?;
    match name {
        "format" => return brace_format::format(text, &arguments, lookup, false).map(Value::from),
        "format_map" => return format_map(text, arguments, lookup),
        "split" | "rsplit" => {
            let [separator, limit] = arguments.bind(name, ["sep", "maxsplit"], 0)?;
            let separator = optional_text(separator.as_ref())?;
            let limit = usize::try_from(whole(limit.as_ref(), -1)?).ok();
            return texts(string_parts::split(text, separator, limit, name == "rsplit")?);
        }
        "splitlines" => {
            let [keeps_ends] = arguments.bind(name, ["keepends"], 0)?;
            let keeps_ends = keeps_ends.is_some_and(|keeps| keeps.is_true());
            return texts(string_parts::lines(text, keeps_ends)?);
        }
        "expandtabs" => {
            let [size] = arguments.bind(name, ["tabsize"], 0)?;
            return expand_tabs(text, whole(size.as_ref(), 8)?).map(Value::from);
        }
        "encode" => return bytes::encode(text, arguments),
        _ => {}
    }
    let [first, second, third] = arguments.positional(name, 0)?;
    let given = [&first, &second, &third].iter().filter(|value| value.is_some()).count();
    let allowed = match name {
        "partition" | "rpartition" | "removeprefix" | "removesuffix" | "join" | "translate"
        | "zfill" => 1..=1,
        "strip" | "lstrip" | "rstrip" => 0..=1,
        "center" | "ljust" | "rjust" => 1..=2,
        "replace" => 2..=3,
        "find" | "rfind" | "index" | "rindex" | "count" | "startswith" | "endswith" => 1..=3,
        "maketrans" => 1..=3,
        _ => 0..=0,
    };
    if !allowed.contains(&given) {
        return Err(Error::new(format!("{name}() takes other arguments ({given} given)")));
    }
    let first = first.unwrap_or(Value::None);
    Ok(match name {
        "lower" => text.to_lowercase().into(),
        "upper" => text.to_uppercase().into(),
        "casefold" => text.chars().flat_map(folded).collect::<String>().into(),
        "capitalize" => capitalize(text).into(),
        "title" => title(text).into(),
        "swapcase" => swap_case(text).into(),
        "strip" | "lstrip" | "rstrip" => strip(text, optional_text(Some(&first))?, name)?.into(),
        "removeprefix" => text.strip_prefix(required_text(&first)?).unwrap_or(text).into(),
        "removesuffix" => text.strip_suffix(required_text(&first)?).unwrap_or(text).into(),
        "replace" => {
            let new = second.unwrap_or(Value::None);
            let limit = usize::try_from(whole(third.as_ref(), -1)?).ok();
            replace(text, required_text(&first)?, required_text(&new)?, limit)?.into()
        }
        "join" => join(text, &first)?.into(),
        "partition" | "rpartition" => partition(text, required_text(&first)?, name)?,
        "zfill" => zero_fill(text, whole(Some(&first), 0)?)?.into(),
        "center" | "ljust" | "rjust" => {
            let fill = optional_text(second.as_ref())?.unwrap_or(" ");
            justify(text, whole(Some(&first), 0)?, fill, name)?.into()
        }
        "find" | "rfind" | "index" | "rindex" => {
            let window = Window::new(text, second.as_ref(), third.as_ref())?;
            let found = window.and_then(|window| {
                window.find(required_text(&first).unwrap_or_default(), name.starts_with('r'))
            });
            required_text(&first)?;
            match found {
                Some(index) => index.into(),
                None if name.ends_with("find") => Value::int(-1),
                None => return Err(Error::new("substring not found")),
            }
        }
        "count" => {
            let part = required_text(&first)?;
            let window = Window::new(text, second.as_ref(), third.as_ref())?;
            window.map_or(0, |window| window.text.matches(part).count()).into()
        }
        "startswith" | "endswith" => {
            let window = Window::new(text, second.as_ref(), third.as_ref())?;
            borders(window, &first, name == "startswith")?.into()
        }
        "translate" => translate(text, &first)?.into(),
        "maketrans" => make_translation(&first, second.as_ref(), third.as_ref())?,
        _ => character_classes::is(text, name).into(),
    })
}

/// Counts the steps of a method: most look at every character.
fn charge(text: &str, name: &str) -> Result<(), Error> {
    let weight = match name {
        "startswith" | "endswith" | "removeprefix" | "removesuffix" | "strip" | "lstrip"
        | "rstrip" => 0,
        "find" | "rfind" | "index" | "rindex" | "count" | "replace" | "split" | "rsplit"
        | "splitlines" | "partition" | "rpartition" => 1,
        _ => 4,
    };
    budget::charge_text(text.len().saturating_mul(weight))
}

fn texts(parts: Vec<&str>) -> Result<Value, Error> {
    let mut texts = Vec::with_capacity(parts.len());
    for part in parts {
        texts.push(Value::from(part));
        budget::check()?;
    }
    Ok(Value::list(texts))
}

fn folded(character: char) -> impl Iterator<Item = char> {
    // The dotless i has no other form than itself.
    let is_itself = character == 'ı';
    let upper: Vec<char> =
        if is_itself { vec![character] } else { character.to_uppercase().collect() };
    upper.into_iter().flat_map(char::to_lowercase)
}

/// The first character as in a title, the others in lower case.
pub(crate) fn capitalize(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut characters = text.chars();
    if let Some(first) = characters.next() {
        unicode::push_title(first, &mut out);
        let lower = text.to_lowercase();
        let first_lower: usize = first.to_lowercase().map(char::len_utf8).sum();
        out.push_str(&lower[first_lower..]);
    }
    out
}

fn title(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut is_inside = false;
    for (position, character) in text.char_indices() {
        if is_inside {
            unicode::push_lower(text, position, character, &mut out);
        } else {
            unicode::push_title(character, &mut out);
        }
        is_inside = unicode::is_cased(character);
    }
    out
}

fn swap_case(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for (position, character) in text.char_indices() {
        if character.is_uppercase() {
            unicode::push_lower(text, position, character, &mut out);
        } else {
            out.extend(character.to_uppercase());
        }
    }
    out
}

/// White space or the given characters taken away at the ends that the method's name says.
///
/// # Errors
/// It would cost too much.
pub(crate) fn strip<'a>(
    text: &'a str,
    characters: Option<&str>,
    method: &str,
) -> Result<&'a str, Error> {
    budget::charge_text(characters.map_or(0, str::len))?;
    let characters: Option<BTreeSet<char>> = characters.map(|set| set.chars().collect());
    let is_stripped = |character: char| match &characters {
        Some(set) => set.contains(&character),
        None => unicode::is_space(character),
    };
    let stripped = if method == "rstrip" { text } else { text.trim_start_matches(is_stripped) };
    let stripped =
        if method == "lstrip" { stripped } else { stripped.trim_end_matches(is_stripped) };
    budget::charge_text((text.len() - stripped.len()).saturating_mul(4) + stripped.len() / 4)?;
    Ok(stripped)
}

/// `replace()`: all occurrences, or the first ones.
pub(crate) fn replace(
    text: &str,
    old: &str,
    new: &str,
    limit: Option<usize>,
) -> Result<String, Error> {
    budget::charge_text(text.len())?;
    if new.len() > old.len() {
        let times = text.matches(old).count().min(limit.unwrap_or(usize::MAX));
        check_text_bytes(text.len().saturating_add(times.saturating_mul(new.len())))?;
    }
    Ok(match limit {
        Some(limit) => text.replacen(old, new, limit),
        None => text.replace(old, new),
    })
}

fn join(separator: &str, items: &Value) -> Result<String, Error> {
    let mut out = String::new();
    for (index, item) in items.iterate()?.enumerate() {
        let item = item?;
        let Some(text) = item.as_text() else {
            return Err(Error::new(format!(
                "sequence item {index}: expected str instance, {} found",
                item.type_name()
            )));
        };
        if index > 0 {
            out.push_str(separator);
        }
        check_text_bytes(out.len() + text.len())?;
        budget::charge_text(text.len() + separator.len())?;
        out.push_str(text);
    }
    Ok(out)
}

fn partition(text: &str, separator: &str, method: &str) -> Result<Value, Error> {
    if separator.is_empty() {
        return Err(Error::new("empty separator"));
    }
    let is_from_end = method == "rpartition";
    let found = if is_from_end { text.rfind(separator) } else { text.find(separator) };
    let parts = match found {
        Some(at) => [&text[..at], separator, &text[at + separator.len()..]],
        None if is_from_end => ["", "", text],
        None => [text, "", ""],
    };
    Ok(Value::tuple(parts.into_iter().map(Value::from).collect()))
}

fn zero_fill(text: &str, width: i64) -> Result<String, Error> {
    let missing = padding::missing(text, usize::try_from(width).unwrap_or(0));
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    let sign = &text[..text.len() - digits.len()];
    Ok(sign.to_owned() + &padding::padded(digits, '0', [missing, 0])?)
}

/// A text with fill characters at the ends that the method's name says.
pub(crate) fn justify(text: &str, width: i64, fill: &str, method: &str) -> Result<String, Error> {
    let mut characters = fill.chars();
    let (Some(fill), None) = (characters.next(), characters.next()) else {
        return Err(Error::new("The fill character must be exactly one character long"));
    };
    let width = usize::try_from(width).unwrap_or(0);
    let missing = padding::missing(text, width);
    let before = match method {
        "ljust" => 0,
        "rjust" => missing,
        // Python puts the odd one left where the width is odd, too.
        _ => missing / 2 + (missing & width & 1),
    };
    padding::padded(text, fill, [before, missing - before])
}

fn expand_tabs(text: &str, size: i64) -> Result<String, Error> {
    let size = usize::try_from(size).unwrap_or(0);
    check_text_bytes(text.matches('\t').count().saturating_mul(size))?;
    let mut out = String::with_capacity(text.len());
    let mut column = 0;
    for character in text.chars() {
        match character {
            '\t' if size > 0 => {
                let spaces = size - column % size;
                out.extend(std::iter::repeat_n(' ', spaces));
                column += spaces;
            }
            '\t' => {}
            '\n' | '\r' => {
                out.push(character);
                column = 0;
            }
            other => {
                out.push(other);
                column += 1;
            }
        }
    }
    Ok(out)
}

fn format_map(text: &str, arguments: Arguments, lookup: Lookup) -> Result<Value, Error> {
    let [Some(Value::Dict(dict))] = arguments.positional("format_map", 1)? else {
        return Err(Error::new("format_map() takes a mapping"));
    };
    let named = |(key, value): (&Value, &Value)| Some((key.as_text()?.into(), value.clone()));
    let keywords = dict.iter().filter_map(named).collect();
    let arguments = Arguments { positional: Vec::new(), keywords };
    brace_format::format(text, &arguments, lookup, false).map(Value::from)
}

/// The part of a text between two positions, counted in characters.
struct Window<'a> {
    text: &'a str,
    start: usize,
}

impl<'a> Window<'a> {
    /// `None` where the start lies behind the end of the text.
    fn new(
        text: &'a str,
        start: Option<&Value>,
        stop: Option<&Value>,
    ) -> Result<Option<Self>, Error> {
        let border = |value: Option<&Value>, default: i64| match value {
            Some(Value::None) => Ok(default),
            other => whole(other, default),
        };
        if start.is_none() && stop.is_none() {
            return Ok(Some(Self { text, start: 0 }));
        }
        budget::charge_text(text.len())?;
        let length = text.chars().count();
        let signed = i64::try_from(length).unwrap_or(i64::MAX);
        let (start, stop) = (border(start, 0)?, border(stop, signed)?);
        let clamp = |position: i64| {
            let position = if position < 0 { position.saturating_add(signed) } else { position };
            usize::try_from(position.max(0)).unwrap_or(length)
        };
        let (start, stop) = (clamp(start), clamp(stop).min(length));
        if start > stop {
            return Ok(None);
        }
        let byte = |position: usize| {
            text.char_indices().nth(position).map_or(text.len(), |(byte, _)| byte)
        };
        Ok(Some(Self { text: &text[byte(start)..byte(stop)], start }))
    }

    fn find(&self, part: &str, is_from_end: bool) -> Option<usize> {
        let byte = if is_from_end { self.text.rfind(part) } else { self.text.find(part) }?;
        Some(self.start + self.text[..byte].chars().count())
    }
}

fn borders(window: Option<Window<'_>>, parts: &Value, is_start: bool) -> Result<bool, Error> {
    let parts = match parts {
        Value::Tuple(parts) => parts.to_vec(),
        other => vec![other.clone()],
    };
    budget::charge_items(parts.len())?;
    for part in parts {
        let part = required_text(&part)?;
        let found = window.as_ref().is_some_and(|window| match is_start {
            true => window.text.starts_with(part),
            false => window.text.ends_with(part),
        });
        if found {
            return Ok(true);
        }
    }
    Ok(false)
}

fn translate(text: &str, table: &Value) -> Result<String, Error> {
    let Value::Dict(table) = table else {
        return Err(Error::new("translate() takes a dictionary here"));
    };
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match table.get(&Value::int(i64::from(u32::from(character))))? {
            None => out.push(character),
            Some(Value::None) => {}
            Some(Value::Text(new)) => out.push_str(new),
            Some(other) => {
                let code = other.as_integer().and_then(|code| code.to_i64());
                let new = code.and_then(|code| char::from_u32(u32::try_from(code).ok()?));
                out.push(new.ok_or_else(|| Error::new("character mapping must be a character"))?);
            }
        }
        check_text_bytes(out.len())?;
    }
    Ok(out)
}

fn make_translation(
    from: &Value,
    to: Option<&Value>,
    removed: Option<&Value>,
) -> Result<Value, Error> {
    let code = |character: char| Value::int(i64::from(u32::from(character)));
    let mut table = Dict::default();
    if let (Value::Dict(pairs), None) = (from, to) {
        for (key, value) in pairs.iter() {
            let key = match key.as_text().map(|text| (text.chars().next(), text.chars().count())) {
                Some((Some(character), 1)) => code(character),
                Some(_) => {
                    return Err(Error::new("string keys in translate table must be of length 1"));
                }
                None => key.clone(),
            };
            table.insert(Key::new(key)?, value.clone());
        }
        return Ok(Value::dict(table));
    }
    let (from, to) = (required_text(from)?, required_text(to.unwrap_or(&Value::None))?);
    if from.chars().count() != to.chars().count() {
        return Err(Error::new("the first two maketrans arguments must have equal length"));
    }
    for (from, to) in from.chars().zip(to.chars()) {
        table.insert(Key::new(code(from))?, code(to));
    }
    for character in optional_text(removed)?.unwrap_or_default().chars() {
        table.insert(Key::new(code(character))?, Value::None);
    }
    Ok(Value::dict(table))
}
