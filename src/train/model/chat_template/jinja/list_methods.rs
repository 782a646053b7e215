//! Methods of lists and tuples. Those that would change a list are hidden, as in the sandbox of Jinja.

use super::arguments::Arguments;
use super::budget;
use super::error::Error;
use super::value::Value;

/// What a list offers.
pub(crate) const NAMES: &[&str] = &["copy", "count", "index"];
/// What a tuple offers.
pub(crate) const TUPLE_NAMES: &[&str] = &["count", "index"];
/// What a list would offer outside of the sandbox.
pub(crate) const CHANGING: &[&str] =
    &["append", "clear", "pop", "reverse", "insert", "sort", "extend", "remove"];

/// Calls a method.
pub(crate) fn call(items: &[Value], name: &str, arguments: Arguments) -> Result<Value, Error> {
    match name {
        "count" => {
            let [Some(wanted)] = arguments.positional(name, 1)? else {
                return Err(Error::new("count() takes exactly one argument"));
            };
            let count = items.iter().filter(|item| item.equals(&wanted)).count();
            budget::check()?;
            Ok(count.into())
        }
        "index" => {
            let [wanted, start, stop] = arguments.positional(name, 1)?;
            let wanted = wanted.unwrap_or(Value::None);
            let border = |value: Option<Value>, default: usize| {
                let position = value.and_then(|value| value.as_integer());
                position.map_or(default, |position| clamp(items.len(), position.saturating()))
            };
            let (start, stop) = (border(start, 0), border(stop, items.len()));
            let found = (start..stop).find(|index| items[*index].equals(&wanted));
            budget::check()?;
            found
                .map(Value::from)
                .ok_or_else(|| Error::new("the value that index() looks for is not in the list"))
        }
        _ => {
            let [] = arguments.positional(name, 0)?;
            budget::check_items(items.len())?;
            budget::charge_items(items.len())?;
            Ok(Value::list(items.to_vec()))
        }
    }
}

fn clamp(length: usize, position: i64) -> usize {
    let signed = i64::try_from(length).unwrap_or(i64::MAX);
    let position = if position < 0 { position.saturating_add(signed) } else { position };
    usize::try_from(position.clamp(0, signed)).unwrap_or(length)
}
