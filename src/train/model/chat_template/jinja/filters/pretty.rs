//! `pprint`: one line with sorted keys, or one line for each item where it would be too long.

use super::super::budget;
use super::super::dict::{Dict, Key};
use super::super::error::Error;
use super::super::value::Value;
use super::super::{repr, sort};

/// Widest line.
const WIDTH: usize = 80;

/// A value over several lines, where it is long.
pub(super) fn pretty(value: &Value) -> Result<String, Error> {
    let mut out = String::new();
    push_pretty(value, 0, 0, &mut out)?;
    Ok(out)
}

fn push_pretty(
    value: &Value,
    indent: usize,
    allowance: usize,
    out: &mut String,
) -> Result<(), Error> {
    budget::check_text_bytes(out.len())?;
    let line = repr::repr(&with_sorted_keys(value)?)?;
    let room = WIDTH.saturating_sub(indent + allowance);
    if line.chars().count() <= room {
        out.push_str(&line);
        return Ok(());
    }
    match value {
        Value::Dict(_) => push_dict(value, indent, allowance, out),
        Value::List(items) => push_items(items, ["[", "]"], indent, allowance, out),
        Value::Tuple(items) if items.len() == 1 => {
            push_items(items, ["(", ",)"], indent, allowance, out)
        }
        Value::Tuple(items) => push_items(items, ["(", ")"], indent, allowance, out),
        Value::Text(_) if line.contains([' ', '\n']) => Err(Error::new(
            "pprint of a text that is longer than a line is not supported in chat templates",
        )),
        _ => {
            out.push_str(&line);
            Ok(())
        }
    }
}

fn push_dict(dict: &Value, indent: usize, allowance: usize, out: &mut String) -> Result<(), Error> {
    let Value::Dict(sorted) = with_sorted_keys(dict)? else { return Ok(()) };
    out.push('{');
    for (index, (key, value)) in sorted.iter().enumerate() {
        let key = repr::repr(key)?;
        let is_last = index + 1 == sorted.len();
        out.push_str(&key);
        out.push_str(": ");
        let rest = if is_last { allowance + 1 } else { 1 };
        push_pretty(value, indent + key.chars().count() + 3, rest, out)?;
        push_break(is_last, indent, out)?;
    }
    out.push('}');
    Ok(())
}

fn push_items(
    items: &[Value],
    [begin, end]: [&str; 2],
    indent: usize,
    allowance: usize,
    out: &mut String,
) -> Result<(), Error> {
    out.push_str(begin);
    for (index, item) in items.iter().enumerate() {
        let is_last = index + 1 == items.len();
        push_pretty(item, indent + 1, if is_last { allowance + end.len() } else { 1 }, out)?;
        push_break(is_last, indent, out)?;
    }
    out.push_str(end);
    Ok(())
}

/// What stands between two lines.
fn push_break(is_last: bool, indent: usize, out: &mut String) -> Result<(), Error> {
    if !is_last {
        budget::check_text_bytes(out.len().saturating_add(indent))?;
        out.push_str(",\n");
        out.extend(std::iter::repeat_n(' ', indent + 1));
    }
    Ok(())
}

/// The value with the keys of its dictionaries in order.
fn with_sorted_keys(value: &Value) -> Result<Value, Error> {
    budget::charge(1)?;
    let all = |items: &[Value]| items.iter().map(with_sorted_keys).collect::<Result<Vec<_>, _>>();
    Ok(match value {
        Value::List(items) => Value::list(all(items)?),
        Value::Tuple(items) => Value::tuple(all(items)?),
        Value::Dict(dict) => Value::dict(with_keys_in_order(dict)?),
        other => other.clone(),
    })
}

fn with_keys_in_order(dict: &Dict) -> Result<Dict, Error> {
    let keyed = dict
        .iter()
        .map(|(key, value)| (key.clone(), Value::tuple(vec![key.clone(), value.clone()])));
    let mut sorted = Dict::default();
    for pair in sort::by_any_key(keyed.collect())? {
        if let Value::Tuple(pair) = pair {
            sorted.insert(Key::new(pair[0].clone())?, with_sorted_keys(&pair[1])?);
        }
    }
    Ok(sorted)
}
