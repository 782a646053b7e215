//! Methods of dictionaries. Those that would change one are hidden, as in the sandbox of Jinja.

use std::any::Any;
use std::rc::Rc;

use super::arguments::Arguments;
use super::dict::{Dict, Key};
use super::error::Error;
use super::object::Object;
use super::value::Value;
use super::{budget, repr};

/// What a dictionary offers.
pub(crate) const NAMES: &[&str] = &["copy", "fromkeys", "get", "items", "keys", "values"];
/// What a dictionary would offer outside of the sandbox.
pub(crate) const CHANGING: &[&str] = &["clear", "pop", "popitem", "setdefault", "update"];

/// Calls a method.
pub(crate) fn call(dict: &Rc<Dict>, name: &str, arguments: Arguments) -> Result<Value, Error> {
    match name {
        "get" => {
            let [key, default] = arguments.positional(name, 1)?;
            let found = dict.get(&key.unwrap_or(Value::None))?.cloned();
            Ok(found.or(default).unwrap_or(Value::None))
        }
        "fromkeys" => from_keys(arguments),
        _ => {
            let [] = arguments.positional(name, 0)?;
            let part = match name {
                "keys" => Part::Keys,
                "values" => Part::Values,
                "items" => Part::Items,
                _ => return Ok(Value::Dict(dict.clone())),
            };
            Ok(Value::object(View { dict: dict.clone(), part }))
        }
    }
}

/// `dict.fromkeys`.
pub(crate) fn from_keys(arguments: Arguments) -> Result<Value, Error> {
    let [keys, value] = arguments.positional("fromkeys", 1)?;
    let value = value.unwrap_or(Value::None);
    let mut made = Dict::default();
    for key in keys.unwrap_or(Value::None).iterate()? {
        made.insert(Key::new(key?)?, value.clone());
    }
    Ok(Value::dict(made))
}

/// `dict(…)`: pairs or another dictionary, and keywords.
pub(crate) fn make(arguments: Arguments) -> Result<Dict, Error> {
    let mut positional = arguments.positional.into_iter();
    let mut made = match (positional.next(), positional.next()) {
        (None, _) => Dict::default(),
        (Some(Value::Dict(dict)), None) => dict.copied()?,
        (Some(pairs), None) => {
            let mut made = Dict::default();
            for (index, pair) in pairs.iterate()?.enumerate() {
                let pair = pair?.to_vec()?;
                let [key, value] = pair.as_slice() else {
                    return Err(Error::new(format!(
                        "dictionary update sequence element #{index} has length {}; 2 is required",
                        pair.len()
                    )));
                };
                made.insert(Key::new(key.clone())?, value.clone());
            }
            made
        }
        (Some(_), Some(_)) => return Err(Error::new("dict expected at most 1 argument")),
    };
    for (key, value) in arguments.keywords {
        made.insert(Key::text(&key), value);
    }
    Ok(made)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Keys,
    Values,
    Items,
}

/// `dict.keys()`, `dict.values()` or `dict.items()`.
struct View {
    dict: Rc<Dict>,
    part: Part,
}

impl Object for View {
    fn type_name(&self) -> &'static str {
        match self.part {
            Part::Keys => "dict_keys",
            Part::Values => "dict_values",
            Part::Items => "dict_items",
        }
    }

    fn repr(&self) -> Result<String, Error> {
        let mut items = Vec::new();
        while let Some(item) = self.nth(items.len()) {
            budget::check_items(items.len())?;
            items.push(item);
        }
        Ok(format!("{}({})", self.type_name(), repr::repr(&Value::list(items))?))
    }

    fn depth(&self) -> usize {
        self.dict.depth() + 1
    }

    fn is_iterable(&self) -> bool {
        true
    }

    fn nth(&self, index: usize) -> Option<Value> {
        let (key, value) = self.dict.nth(index)?;
        Some(match self.part {
            Part::Keys => key.clone(),
            Part::Values => value.clone(),
            Part::Items => Value::tuple(vec![key.clone(), value.clone()]),
        })
    }

    fn length(&self) -> Option<usize> {
        Some(self.dict.len())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
