//! Filters that take or make lists.

use super::super::arguments::{Arguments, whole};
use super::super::ast::Binary;
use super::super::budget::{check_items, check_text_bytes};
use super::super::error::Error;
use super::super::items::Stream;
use super::super::runtime::Runtime;
use super::super::value::Value;
use super::super::{budget, markup, operators, repr, subscripts};
use super::attributes::Path;
use super::order;

/// What a filter makes of a value.
pub(super) fn apply(
    runtime: &mut dyn Runtime,
    name: &str,
    value: Value,
    arguments: Arguments,
) -> Result<Value, Error> {
    match name {
        "map" => Ok(lazily(|| map(runtime, &value, arguments))),
        "select" | "reject" | "selectattr" | "rejectattr" => {
            Ok(lazily(|| select(runtime, name, &value, arguments)))
        }
        "join" => join(&value, arguments, runtime.escapes()),
        "sort" | "dictsort" | "unique" | "min" | "max" | "groupby" => {
            order::apply(name, &value, arguments)
        }
        "sum" => sum(&value, arguments),
        "batch" => batch(&value, arguments),
        "slice" => slices(&value, arguments),
        "attr" => {
            let [name] = arguments.bind(name, ["name"], 1)?;
            let name = name.unwrap_or(Value::None);
            let text = name.as_text().ok_or_else(|| Error::new("attribute name must be string"))?;
            let found = subscripts::own_attribute(&value, text)?;
            Ok(found.unwrap_or_else(|| subscripts::missing(&value, &name)))
        }
        _ => {
            let [] = arguments.bind(name, [], 0)?;
            match name {
                "count" | "length" => value.length().map(Value::from),
                "list" => value.to_vec().map(Value::list),
                "first" => match value.iterate()?.next() {
                    Some(first) => first,
                    None => Ok(Value::undefined("No first item, sequence was empty.")),
                },
                "last" => last(&value),
                "reverse" => reverse(&value),
                "items" => Ok(lazily(|| items(&value))),
                _ => Err(Error::new(format!("No filter named '{name}'."))),
            }
        }
    }
}

/// A generator, which fails only when it is used.
fn lazily(make: impl FnOnce() -> Result<Value, Error>) -> Value {
    make().unwrap_or_else(Stream::failing)
}

fn last(value: &Value) -> Result<Value, Error> {
    if value.length().is_err() {
        return Err(Error::new(format!("'{}' object is not reversible", value.type_name())));
    }
    // Python reads a text backwards by its positions, which keeps HTML what it is.
    let last = match value.as_text() {
        Some(text) => text.chars().next_back().map(|last| value.with_text(last.to_string())),
        None => value.to_vec()?.pop(),
    };
    Ok(last.unwrap_or_else(|| Value::undefined("No last item, sequence was empty.")))
}

fn reverse(value: &Value) -> Result<Value, Error> {
    if let Some(text) = value.as_text() {
        budget::charge_text(text.len())?;
        let reversed: String = text.chars().rev().collect();
        return Ok(value.with_text(reversed));
    }
    let mut items = value.to_vec()?;
    items.reverse();
    // Only what can be read backwards gives a generator.
    Ok(match value.length() {
        Ok(_) => Stream::value(items.into_iter().map(Ok)),
        Err(_) => Value::list(items),
    })
}

fn items(value: &Value) -> Result<Value, Error> {
    let pair = |(key, value): (&Value, &Value)| Ok(Value::tuple(vec![key.clone(), value.clone()]));
    match value {
        Value::Undefined(_) => Ok(Stream::value(std::iter::empty())),
        Value::Dict(dict) => Ok(Stream::value(dict.iter().map(pair))),
        _ => Err(Error::new("Can only get item pairs from a mapping.")),
    }
}

fn map(runtime: &mut dyn Runtime, value: &Value, arguments: Arguments) -> Result<Value, Error> {
    if !value.is_true() {
        return Ok(Stream::value(std::iter::empty()));
    }
    let Arguments { positional, keywords } = arguments;
    let mut positional = positional.into_iter();
    let Some(filter) = positional.next() else {
        let known = |(name, _): &(_, Value)| -> bool {
            let name: &std::sync::Arc<str> = name;
            matches!(&**name, "attribute" | "default")
        };
        let wanted = |wanted: &str| {
            keywords.iter().find(|(name, _)| **name == *wanted).map(|(_, value)| value)
        };
        let Some(attribute) = wanted("attribute") else {
            return Err(Error::new("map requires a filter argument"));
        };
        if let Some((name, _)) = keywords.iter().find(|keyword| !known(keyword)) {
            return Err(Error::new(format!("Unexpected keyword argument '{name}'")));
        }
        let (path, default) = (Path::new(attribute), wanted("default"));
        return Ok(Stream::value(value.iterate()?.map(|item| path.of(&item?, default))));
    };
    let filter = repr::to_shared(&filter)?;
    let arguments = Arguments { positional: positional.collect(), keywords };
    let mut apply = |item| {
        budget::charge_items(arguments.len())?;
        runtime.apply_filter(&filter, item, arguments.clone())
    };
    Ok(Stream::value(value.iterate()?.map(|item| apply(item?))))
}

fn select(
    runtime: &mut dyn Runtime,
    name: &str,
    value: &Value,
    arguments: Arguments,
) -> Result<Value, Error> {
    if !value.is_true() {
        return Ok(Stream::value(std::iter::empty()));
    }
    let Arguments { positional, keywords } = arguments;
    let mut positional = positional.into_iter();
    let path = match name.ends_with("attr") {
        true => {
            let attribute = positional.next();
            Path::new(&attribute.ok_or_else(|| Error::new("Missing parameter for attribute name"))?)
        }
        false => Path::new(&Value::None),
    };
    let test = positional.next().map(|test| repr::to_shared(&test)).transpose()?;
    let arguments = Arguments { positional: positional.collect(), keywords };
    let wanted = name.starts_with("select");
    let mut selected = |item: Result<Value, Error>| -> Result<Option<Value>, Error> {
        let item = item?;
        let tested = path.of(&item, None)?;
        budget::charge_items(arguments.len())?;
        let found = match &test {
            Some(test) => runtime.apply_test(test, tested, arguments.clone())?,
            None => tested.is_true(),
        };
        Ok((found == wanted).then_some(item))
    };
    Ok(Stream::value(value.iterate()?.filter_map(|item| selected(item).transpose())))
}

fn join(value: &Value, arguments: Arguments, escapes: bool) -> Result<Value, Error> {
    let [separator, attribute] = arguments.bind("join", ["d", "attribute"], 0)?;
    let separator = separator.unwrap_or_else(|| Value::from(""));
    let path = Path::new(&attribute.unwrap_or(Value::None));
    if !escapes {
        let items = value.iterate()?.map(|item| path.of(&item?, None));
        return join_all(&repr::to_text(&separator)?, items, false).map(Value::from);
    }
    let mut items = Vec::new();
    for item in value.iterate()? {
        items.push(path.of(&item?, None)?);
    }
    let is_markup = |value: &Value| matches!(value, Value::Markup(_));
    if is_markup(&separator) || items.iter().any(is_markup) {
        let separator = markup::escaped(&separator)?;
        let text = join_all(&separator, items.into_iter().map(Ok), true)?;
        return Ok(Value::Markup(text.into()));
    }
    join_all(&repr::to_text(&separator)?, items.into_iter().map(Ok), false).map(Value::from)
}

fn join_all(
    separator: &str,
    items: impl Iterator<Item = Result<Value, Error>>,
    escapes: bool,
) -> Result<String, Error> {
    let mut out = String::new();
    for (index, item) in items.enumerate() {
        if index > 0 {
            out.push_str(separator);
        }
        let item = item?;
        let text = if escapes { markup::escaped(&item)? } else { repr::to_text(&item)? };
        budget::charge_text(separator.len() + text.len())?;
        out.push_str(&text);
        check_text_bytes(out.len())?;
    }
    Ok(out)
}

fn sum(value: &Value, arguments: Arguments) -> Result<Value, Error> {
    let [attribute, start] = arguments.bind("sum", ["attribute", "start"], 0)?;
    let path = Path::new(&attribute.unwrap_or(Value::None));
    let mut total = start.unwrap_or(Value::int(0));
    if total.as_text().is_some() {
        return Err(Error::new("sum() can't sum strings [use ''.join(seq) instead]"));
    }
    for item in value.iterate()? {
        total = operators::binary(Binary::Add, &total, &path.of(&item?, None)?)?;
    }
    Ok(total)
}

fn batch(value: &Value, arguments: Arguments) -> Result<Value, Error> {
    let [count, fill] = arguments.bind("batch", ["linecount", "fill_with"], 1)?;
    // No batch is ever full that has less than no items.
    let count = usize::try_from(whole(count.as_ref(), 0)?).ok();
    let fill = fill.filter(|fill| !matches!(fill, Value::None));
    Ok(lazily(|| batches(value, count, fill)))
}

fn batches(value: &Value, count: Option<usize>, fill: Option<Value>) -> Result<Value, Error> {
    let mut batches = Vec::new();
    let mut batch = Vec::new();
    for item in value.iterate()? {
        if Some(batch.len()) == count {
            batches.push(Value::list(std::mem::take(&mut batch)));
        }
        batch.push(item?);
    }
    if !batch.is_empty() {
        if let (Some(fill), Some(count)) = (fill, count) {
            check_items(count)?;
            batch.resize(count.max(batch.len()), fill);
        }
        batches.push(Value::list(batch));
    }
    Ok(Stream::value(batches.into_iter().map(Ok)))
}

fn slices(value: &Value, arguments: Arguments) -> Result<Value, Error> {
    let [count, fill] = arguments.bind("slice", ["slices", "fill_with"], 1)?;
    let count = usize::try_from(whole(count.as_ref(), 0)?).ok();
    Ok(lazily(|| match count {
        Some(count) => slices_of(value, count, fill),
        None => Ok(Stream::value(std::iter::empty())),
    }))
}

fn slices_of(value: &Value, count: usize, fill: Option<Value>) -> Result<Value, Error> {
    let items = value.to_vec()?;
    if count == 0 {
        return Err(Error::new("integer division or modulo by zero"));
    }
    check_items(count)?;
    let fill = fill.filter(|fill| !matches!(fill, Value::None));
    let (size, longer) = (items.len() / count, items.len() % count);
    let mut rest = items.as_slice();
    let mut made = Vec::with_capacity(count);
    for index in 0..count {
        let (part, after) = rest.split_at(size + usize::from(index < longer));
        rest = after;
        let mut part = part.to_vec();
        if index >= longer {
            part.extend(fill.clone());
        }
        budget::charge(1)?;
        made.push(Ok(Value::list(part)));
    }
    Ok(Stream::value(made.into_iter()))
}
