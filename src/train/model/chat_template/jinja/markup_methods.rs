//! Methods of texts that are HTML: what they give is HTML, and what they take in is escaped.

use super::arguments::Arguments;
use super::brace_format::{self, Lookup};
use super::error::Error;
use super::list::List;
use super::text::Text;
use super::value::Value;
use super::{markup, string_methods};

/// Calls a method.
///
/// # Errors
/// Those of the method.
pub(crate) fn call(
    text: &Text,
    name: &str,
    arguments: Arguments,
    lookup: Lookup,
) -> Result<Value, Error> {
    let mut arguments = arguments;
    match name {
        "format" => {
            let text = brace_format::format(text, &arguments, lookup, true)?;
            return Ok(Value::Markup(text.into()));
        }
        "format_map" => return Err(Error::new("format_map() of HTML is not supported")),
        "join" => {
            if let Some(items) = arguments.positional.first_mut() {
                let mut escaped = Vec::new();
                for item in items.iterate()? {
                    escaped.push(Value::from(markup::escaped(&item?)?.into_owned()));
                }
                *items = Value::list(escaped);
            }
        }
        "replace" | "ljust" | "rjust" | "center" => {
            if let Some(new) = arguments.positional.get_mut(1) {
                *new = Value::from(markup::escaped(new)?.into_owned());
            }
        }
        _ => {}
    }
    Ok(as_markup(string_methods::call(text, name, arguments, lookup)?))
}

fn as_markup(value: Value) -> Value {
    let all = |items: &List| items.iter().cloned().map(as_markup).collect();
    match value {
        Value::Text(text) => Value::Markup(text),
        Value::List(items) => Value::list(all(&items)),
        Value::Tuple(items) => Value::tuple(all(&items)),
        other => other,
    }
}
