//! Filters that make texts.

use super::super::arguments::{Arguments, optional_text, required_text, whole};
use super::super::budget::{self, check_text_bytes};
use super::super::dict::{Dict, Key};
use super::super::error::Error;
use super::super::string_methods::{self, justify};
use super::super::value::Value;
use super::super::{markup, operators, repr, string_parts, unicode};
use super::{pretty, wrap};

/// What a filter makes of a value.
///
/// `escapes` says whether the template escapes what it writes.
pub(super) fn apply(
    name: &str,
    value: &Value,
    arguments: Arguments,
    escapes: bool,
) -> Result<Value, Error> {
    if name == "format" {
        return format(value, arguments);
    }
    let soft = || repr::to_text(value);
    match name {
        "replace" => replace(value, arguments, escapes),
        "center" => {
            let [width] = arguments.bind(name, ["width"], 0)?;
            let text = justify(&soft()?, whole(width.as_ref(), 80)?, " ", name)?;
            Ok(value.with_text(text))
        }
        "indent" => indent(value, arguments),
        "truncate" => truncate(value, arguments),
        "wordwrap" => wrap::word_wrap(value, arguments),
        "trim" => {
            let [characters] = arguments.bind(name, ["chars"], 0)?;
            let characters = optional_text(characters.as_ref())?;
            Ok(value.with_text(string_methods::strip(&soft()?, characters, "strip")?.to_owned()))
        }
        _ => {
            let [] = arguments.bind(name, [], 0)?;
            if let Some(text) = value.as_text().filter(|_| name != "string") {
                budget::charge_text(text.len().saturating_mul(4))?;
            }
            Ok(match name {
                "capitalize" => value.with_text(string_methods::capitalize(&soft()?)),
                "lower" => value.with_text(soft()?.to_lowercase()),
                "upper" => value.with_text(soft()?.to_uppercase()),
                "title" => title(&soft()?).into(),
                "wordcount" => word_count(&soft()?).into(),
                "pprint" => pretty::pretty(value)?.into(),
                _ => match value {
                    Value::Text(_) | Value::Markup(_) => value.clone(),
                    other => repr::to_text(other)?.into_owned().into(),
                },
            })
        }
    }
}

/// All occurrences, or the first ones. HTML is kept only where the template escapes what it writes.
fn replace(value: &Value, arguments: Arguments, escapes: bool) -> Result<Value, Error> {
    let [old, new, count] = arguments.bind("replace", ["old", "new", "count"], 2)?;
    let limit = match count.unwrap_or(Value::None) {
        Value::None => None,
        count => usize::try_from(whole(Some(&count), -1)?).ok(),
    };
    let (old, new) = (old.unwrap_or(Value::None), new.unwrap_or(Value::None));
    let (old_text, new_text) = (repr::to_text(&old)?, repr::to_text(&new)?);
    let is_markup = |value: &Value| matches!(value, Value::Markup(_));
    if !escapes || ![value, &old, &new].into_iter().any(is_markup) {
        let text = string_methods::replace(&repr::to_text(value)?, &old_text, &new_text, limit)?;
        return Ok(text.into());
    }
    let text = markup::escaped(value)?;
    let text = string_methods::replace(&text, &old_text, &markup::escaped(&new)?, limit)?;
    Ok(Value::Markup(text.into()))
}

fn format(value: &Value, arguments: Arguments) -> Result<Value, Error> {
    let values = match (arguments.positional.is_empty(), arguments.keywords.is_empty()) {
        (false, false) => {
            return Err(Error::new(
                "can't handle positional and keyword arguments at the same time",
            ));
        }
        (true, false) => {
            let mut dict = Dict::default();
            for (name, value) in arguments.keywords {
                dict.insert(Key::text(&name), value);
            }
            Value::dict(dict)
        }
        _ => Value::tuple(arguments.positional),
    };
    match value {
        Value::Text(_) | Value::Markup(_) => operators::percent(value, &values),
        other => operators::percent(&Value::from(repr::to_text(other)?.into_owned()), &values),
    }
}

/// Words begin behind white space, hyphens and opening brackets.
fn title(text: &str) -> String {
    let is_border = |c: char| unicode::is_space(c) || "-({[<".contains(c);
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let border = is_border(first);
        let end = rest.find(|c| is_border(c) != border).unwrap_or(rest.len());
        let (part, after) = rest.split_at(end);
        out.extend(first.to_uppercase());
        out.push_str(&part[first.len_utf8()..].to_lowercase());
        rest = after;
    }
    out
}

fn word_count(text: &str) -> usize {
    text.split(|c| !unicode::is_word(c)).filter(|word| !word.is_empty()).count()
}

fn indent(value: &Value, arguments: Arguments) -> Result<Value, Error> {
    let [width, first, blank] = arguments.bind("indent", ["width", "first", "blank"], 0)?;
    let text = match value {
        Value::Undefined(reason) => return Err(Error::new(reason.as_ref())),
        other => required_text(other)?,
    };
    let indention = match width.unwrap_or(Value::int(4)) {
        Value::Text(text) | Value::Markup(text) => text.to_string(),
        other => {
            let width = usize::try_from(whole(Some(&other), 4)?).unwrap_or(0);
            check_text_bytes(width)?;
            " ".repeat(width)
        }
    };
    let is_set = |option: Option<Value>| option.is_some_and(|option| option.is_true());
    let (first, blank) = (is_set(first), is_set(blank));
    let text = format!("{text}\n");
    let lines = string_parts::lines(&text, false)?;
    check_text_bytes(text.len().saturating_add(lines.len().saturating_mul(indention.len())))?;
    let mut out = String::with_capacity(text.len() + lines.len() * indention.len());
    for (index, line) in lines.iter().enumerate() {
        let is_indented = match index {
            0 => first,
            _ => blank || !line.is_empty(),
        };
        if index > 0 {
            out.push('\n');
        }
        if is_indented {
            out.push_str(&indention);
        }
        out.push_str(line);
    }
    Ok(value.with_text(out))
}

fn truncate(value: &Value, arguments: Arguments) -> Result<Value, Error> {
    let names = ["length", "killwords", "end", "leeway"];
    let [length, kill_words, end, leeway] = arguments.bind("truncate", names, 0)?;
    let length = whole(length.as_ref(), 255)?;
    let leeway = match leeway.unwrap_or(Value::None) {
        Value::None => 5,
        other => whole(Some(&other), 5)?,
    };
    let end = end.unwrap_or_else(|| Value::from("..."));
    let end_length = i64::try_from(end.length()?).unwrap_or(i64::MAX);
    if length < end_length {
        return Err(Error::new(format!("expected length >= {end_length}, got {length}")));
    }
    if leeway < 0 {
        return Err(Error::new(format!("expected leeway >= 0, got {leeway}")));
    }
    let limit = usize::try_from(length.saturating_add(leeway)).unwrap_or(usize::MAX);
    if value.length()? <= limit {
        return Ok(value.clone());
    }
    let text = required_text(value)?;
    budget::charge_text(text.len())?;
    let kept = usize::try_from(length - end_length).unwrap_or(0);
    let cut: String = text.chars().take(kept).collect();
    let cut = match kill_words.is_some_and(|kills| kills.is_true()) {
        true => cut.as_str(),
        false => cut.rsplit_once(' ').map_or(cut.as_str(), |(before, _)| before),
    };
    required_text(&end)?;
    let end = if matches!(value, Value::Markup(_)) {
        markup::escaped(&end)?
    } else {
        repr::to_text(&end)?
    };
    Ok(value.with_text(format!("{cut}{end}")))
}
