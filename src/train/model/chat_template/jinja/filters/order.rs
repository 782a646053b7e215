//! Filters that compare items: `sort`, `dictsort`, `unique`, `min`, `max` and `groupby`.

use std::any::Any;
use std::collections::HashSet;

use super::super::arguments::Arguments;
use super::super::dict::Key;
use super::super::error::Error;
use super::super::items::Stream;
use super::super::object::{Object, depth_of};
use super::super::value::Value;
use super::super::{operators, repr, slice, sort};
use super::attributes::{Path, ignore_case};

/// What a filter makes of a value.
pub(super) fn apply(name: &str, value: &Value, arguments: Arguments) -> Result<Value, Error> {
    match name {
        "sort" => sort(value, arguments),
        "dictsort" => sort_dict(value, arguments),
        "unique" => unique(value, arguments),
        "groupby" => group(value, arguments),
        _ => extreme(name, value, arguments),
    }
}

/// The value that an item is compared by.
fn key(path: &Path, item: &Value, is_case_sensitive: bool) -> Result<Value, Error> {
    let key = path.of(item, None)?;
    Ok(if is_case_sensitive { key } else { ignore_case(key) })
}

fn is_set(option: Option<Value>) -> bool {
    option.is_some_and(|option| option.is_true())
}

fn sort(value: &Value, arguments: Arguments) -> Result<Value, Error> {
    let names = ["reverse", "case_sensitive", "attribute"];
    let [reverse, case_sensitive, attribute] = arguments.bind("sort", names, 0)?;
    let case_sensitive = is_set(case_sensitive);
    let paths = Path::list(&attribute.unwrap_or(Value::None));
    let mut keyed = Vec::new();
    for item in value.iterate()? {
        let item = item?;
        let mut keys = Vec::with_capacity(paths.len());
        for path in &paths {
            keys.push(key(path, &item, case_sensitive)?);
        }
        keyed.push((Value::list(keys), item));
    }
    sort::by_key(keyed, is_set(reverse)).map(Value::list)
}

fn sort_dict(value: &Value, arguments: Arguments) -> Result<Value, Error> {
    let names = ["case_sensitive", "by", "reverse"];
    let [case_sensitive, by, reverse] = arguments.bind("dictsort", names, 0)?;
    let case_sensitive = is_set(case_sensitive);
    let by = by.unwrap_or_else(|| Value::from("key"));
    let Value::Dict(dict) = value else {
        return Err(Error::new(format!("'{}' object has no attribute 'items'", value.type_name())));
    };
    let by_value = match by.as_text() {
        Some("key") => false,
        Some("value") => true,
        _ => return Err(Error::new("You can only sort by either \"key\" or \"value\"")),
    };
    let pairs = dict.iter().map(|(key, value)| {
        let sorted_by = if by_value { value.clone() } else { key.clone() };
        let sorted_by = if case_sensitive { sorted_by } else { ignore_case(sorted_by) };
        (sorted_by, Value::tuple(vec![key.clone(), value.clone()]))
    });
    sort::by_key(pairs.collect(), is_set(reverse)).map(Value::list)
}

fn unique(value: &Value, arguments: Arguments) -> Result<Value, Error> {
    let [case_sensitive, attribute] =
        arguments.bind("unique", ["case_sensitive", "attribute"], 0)?;
    let case_sensitive = is_set(case_sensitive);
    let path = Path::new(&attribute.unwrap_or(Value::None));
    let mut seen = HashSet::new();
    let mut is_new = |item: Result<Value, Error>| -> Result<Option<Value>, Error> {
        let item = item?;
        let key = Key::new(key(&path, &item, case_sensitive)?)?;
        Ok(seen.insert(key).then_some(item))
    };
    let mut unique =
        || Ok(Stream::value(value.iterate()?.filter_map(|item| is_new(item).transpose())));
    Ok(unique().unwrap_or_else(Stream::failing))
}

fn extreme(name: &str, value: &Value, arguments: Arguments) -> Result<Value, Error> {
    let [case_sensitive, attribute] = arguments.bind(name, ["case_sensitive", "attribute"], 0)?;
    let case_sensitive = is_set(case_sensitive);
    let path = Path::new(&attribute.unwrap_or(Value::None));
    let mut best: Option<(Value, Value)> = None;
    for item in value.iterate()? {
        let item = item?;
        let key = key(&path, &item, case_sensitive)?;
        let is_better = match &best {
            None => true,
            Some((best, _)) => match name {
                "min" => operators::order(&key, best, "<")?.is_some_and(|order| order.is_lt()),
                _ => operators::order(&key, best, ">")?.is_some_and(|order| order.is_gt()),
            },
        };
        if is_better {
            best = Some((key, item));
        }
    }
    let nothing = || Value::undefined("No aggregated item, sequence was empty.");
    Ok(best.map_or_else(nothing, |(_, item)| item))
}

fn group(value: &Value, arguments: Arguments) -> Result<Value, Error> {
    let names = ["attribute", "default", "case_sensitive"];
    let [attribute, default, case_sensitive] = arguments.bind("groupby", names, 1)?;
    let case_sensitive = is_set(case_sensitive);
    let path = Path::new(&attribute.unwrap_or(Value::None));
    let key = |item: &Value| -> Result<Value, Error> {
        let key = path.of(item, default.as_ref())?;
        Ok(if case_sensitive { key } else { ignore_case(key) })
    };
    let mut keyed = Vec::new();
    for item in value.iterate()? {
        let item = item?;
        keyed.push((key(&item)?, item));
    }
    let mut groups: Vec<(Value, Vec<Value>)> = Vec::new();
    for item in sort::by_key(keyed, false)? {
        let of_item = key(&item)?;
        match groups.last_mut().filter(|(group, _)| group.equals(&of_item)) {
            Some((_, items)) => items.push(item),
            None => groups.push((of_item, vec![item])),
        }
    }
    let mut made = Vec::new();
    for (_, items) in groups {
        let grouper = path.of(&items[0], default.as_ref())?;
        made.push(Value::object(Group { grouper, list: Value::list(items) }));
    }
    Ok(Value::list(made))
}

/// A group of items: a tuple of what they have in common and their list, with names.
struct Group {
    grouper: Value,
    list: Value,
}

impl Group {
    fn pair(&self) -> Vec<Value> {
        vec![self.grouper.clone(), self.list.clone()]
    }
}

impl Object for Group {
    fn type_name(&self) -> &'static str {
        "_GroupTuple"
    }

    fn repr(&self) -> Result<String, Error> {
        repr::repr(&Value::tuple(self.pair()))
    }

    fn attribute(&self, name: &str) -> Option<Value> {
        match name {
            "grouper" => Some(self.grouper.clone()),
            "list" => Some(self.list.clone()),
            _ => None,
        }
    }

    fn item(&self, position: i64) -> Option<Value> {
        slice::index_of(2, position).map(|index| self.pair().swap_remove(index))
    }

    fn depth(&self) -> usize {
        depth_of([&self.grouper, &self.list])
    }

    fn is_iterable(&self) -> bool {
        true
    }

    fn nth(&self, index: usize) -> Option<Value> {
        self.pair().into_iter().nth(index)
    }

    fn length(&self) -> Option<usize> {
        Some(2)
    }

    fn is_sequence(&self) -> bool {
        true
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
