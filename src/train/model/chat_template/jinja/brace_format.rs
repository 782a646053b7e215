//! `text.format(…)`.

use super::arguments::Arguments;
use super::budget::{self, check_text_bytes};
use super::error::Error;
use super::value::Value;
use super::{format_spec, markup, repr};

/// Finds an attribute or an item of a value.
pub(crate) type Lookup = fn(&Value, &Step<'_>) -> Result<Value, Error>;

/// One step on the way that a field names.
pub(crate) enum Step<'a> {
    Attribute(&'a str),
    Item(Value),
}

/// Where the values of fields come from.
struct Fields<'a> {
    arguments: &'a Arguments,
    lookup: Lookup,
    escapes: bool,
    /// The number that the next field without one has; none once a field has one.
    next: Option<usize>,
    uses_numbers: bool,
}

/// The text with its fields filled in. `escapes` says whether it is HTML, so that what is written into it is escaped.
///
/// # Errors
/// Fields without a value, and specifications that do not fit a value.
pub(crate) fn format(
    text: &str,
    arguments: &Arguments,
    lookup: Lookup,
    escapes: bool,
) -> Result<String, Error> {
    let mut fields = Fields { arguments, lookup, escapes, next: Some(0), uses_numbers: false };
    fill(text, &mut fields, 3)
}

fn fill(text: &str, fields: &mut Fields<'_>, depth: usize) -> Result<String, Error> {
    if depth == 0 {
        return Err(Error::new("Max string recursion exceeded"));
    }
    let mut out = String::new();
    let mut rest = text;
    while let Some(position) = rest.find(['{', '}']) {
        out.push_str(&rest[..position]);
        let brace = &rest[position..=position];
        rest = &rest[position + 1..];
        if let Some(after) = rest.strip_prefix(brace) {
            out.push_str(brace);
            rest = after;
            continue;
        }
        if brace == "}" {
            return Err(Error::new("Single '}' encountered in format string"));
        }
        let end = closing(rest).ok_or_else(|| Error::new("expected '}' before end of string"))?;
        budget::charge(1)?;
        out.push_str(&field(&rest[..end], fields, depth)?);
        check_text_bytes(out.len())?;
        rest = &rest[end + 1..];
    }
    out.push_str(rest);
    Ok(out)
}

fn closing(text: &str) -> Option<usize> {
    let mut depth = 1;
    text.find(|character| {
        match character {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        depth == 0
    })
}

fn field(text: &str, fields: &mut Fields<'_>, depth: usize) -> Result<String, Error> {
    // A colon or an exclamation mark inside of brackets belongs to the name.
    let mut is_in_brackets = false;
    let end = text.find(|character| {
        match character {
            '[' => is_in_brackets = true,
            ']' => is_in_brackets = false,
            _ => {}
        }
        !is_in_brackets && matches!(character, ':' | '!')
    });
    let (name, rest) = text.split_at(end.unwrap_or(text.len()));
    let value = fields.value(name)?;
    let (conversion, specification) = match rest.strip_prefix('!') {
        Some(rest) => {
            let conversion = rest.chars().next();
            let after = &rest[conversion.map_or(0, char::len_utf8)..];
            if !after.is_empty() && !after.starts_with(':') {
                return Err(Error::new("expected ':' after conversion specifier"));
            }
            (conversion, after)
        }
        None => (None, rest),
    };
    let specification = fill(specification.strip_prefix(':').unwrap_or(""), fields, depth - 1)?;
    let value = match conversion {
        None if rest.starts_with('!') => return Err(Error::new("unmatched '{' in format spec")),
        None => value,
        Some('s') => Value::from(repr::to_text(&value)?.into_owned()),
        Some('r') => Value::from(repr::repr(&value)?),
        Some('a') => Value::from(repr::ascii(&value)?),
        Some(other) => {
            return Err(Error::new(format!("Unknown conversion specifier {other}")));
        }
    };
    match &value {
        Value::Markup(text) if fields.escapes && specification.is_empty() => Ok(text.to_string()),
        Value::Markup(_) if fields.escapes => {
            Err(Error::new("Unsupported format specification for Markup."))
        }
        value if fields.escapes => {
            markup::escaped_text(&format_spec::format(value, &specification)?)
        }
        value => format_spec::format(value, &specification),
    }
}

impl Fields<'_> {
    /// The value of a field's name: `0.attribute[item]`.
    fn value(&mut self, name: &str) -> Result<Value, Error> {
        let end = name.find(['.', '[']).unwrap_or(name.len());
        let (first, mut rest) = name.split_at(end);
        let mut value = self.first(first)?;
        while !rest.is_empty() {
            if let Some(after) = rest.strip_prefix('.') {
                let end = after.find(['.', '[']).unwrap_or(after.len());
                if end == 0 {
                    return Err(Error::new("Empty attribute in format string"));
                }
                value = (self.lookup)(&value, &Step::Attribute(&after[..end]))?;
                rest = &after[end..];
            } else if let Some(after) = rest.strip_prefix('[') {
                let end =
                    after.find(']').ok_or_else(|| Error::new("Missing ']' in format string"))?;
                let key = match after[..end].parse::<i64>() {
                    Ok(index) if after.starts_with(|c: char| c.is_ascii_digit()) => {
                        Value::int(index)
                    }
                    _ => Value::from(&after[..end]),
                };
                value = (self.lookup)(&value, &Step::Item(key))?;
                rest = &after[end + 1..];
            } else {
                return Err(Error::new("Only '.' or '[' may follow ']' in format field specifier"));
            }
        }
        Ok(value)
    }

    fn first(&mut self, name: &str) -> Result<Value, Error> {
        let switches = || {
            Error::new("cannot switch between manual field specification and automatic numbering")
        };
        let number = if name.is_empty() {
            let number = self.next.ok_or_else(switches)?;
            self.next = Some(number + 1);
            self.uses_numbers = true;
            Some(number)
        } else if name.chars().all(|digit| digit.is_ascii_digit()) {
            if self.uses_numbers {
                return Err(switches());
            }
            self.next = None;
            name.parse().ok()
        } else {
            None
        };
        if let Some(number) = number {
            return self.arguments.positional.get(number).cloned().ok_or_else(|| {
                Error::new(format!(
                    "Replacement index {number} out of range for positional args tuple"
                ))
            });
        }
        budget::charge_items(self.arguments.keywords.len())?;
        let found = self.arguments.keywords.iter().find(|(known, _)| **known == *name);
        found
            .map(|(_, value)| value.clone())
            .ok_or_else(|| Error::new(format!("KeyError: '{name}'")))
    }
}
