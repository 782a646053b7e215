//! Attributes, items and slices of values.

use super::arguments::Arguments;
use super::brace_format::Step;
use super::error::Error;
use super::object::Object;
use super::range::Range;
use super::slice::{Slice, index_of};
use super::value::Value;
use super::{budget, dict_methods, list_methods, markup_methods, repr, string_methods};

/// `value.name`: an attribute, or else the item of that name.
///
/// # Errors
/// What is undefined has no attributes.
pub(crate) fn attribute(value: &Value, name: &str) -> Result<Value, Error> {
    if let Some(found) = own_attribute(value, name)? {
        return Ok(found);
    }
    if let Value::Dict(dict) = value
        && let Some(item) = dict.get_text(name)
    {
        return Ok(item.clone());
    }
    Ok(missing(value, &Value::from(name)))
}

/// `value[key]`: an item, or else the attribute of that name.
///
/// # Errors
/// What is undefined has no items.
pub(crate) fn item(value: &Value, key: &Value) -> Result<Value, Error> {
    if let Value::Undefined(reason) = value {
        return Err(Error::new(reason.as_ref()));
    }
    let position = key.as_integer().map(|position| position.saturating());
    let found = match (value, position) {
        // Keys that cannot be hashed are not there.
        (Value::Dict(dict), _) => dict.get(key).ok().flatten().cloned(),
        (Value::List(items) | Value::Tuple(items), Some(position)) => {
            index_of(items.len(), position).map(|index| items[index].clone())
        }
        (Value::Text(text), Some(position)) => character(text, position).map(Value::from),
        (Value::Markup(text), Some(position)) => {
            character(text, position).map(|character| Value::Markup(character.into()))
        }
        (Value::Object(object), Some(position)) => object.item(position),
        _ => None,
    };
    if let Some(found) = found {
        return Ok(found);
    }
    if let Some(name) = key.as_text()
        && let Some(found) = own_attribute(value, name)?
    {
        return Ok(found);
    }
    Ok(missing(value, key))
}

/// What the fields of `text.format(…)` name.
fn look_up(value: &Value, step: &Step<'_>) -> Result<Value, Error> {
    match step {
        Step::Attribute(name) => attribute(value, name),
        Step::Item(key) => item(value, key),
    }
}

/// An attribute of the value itself; one that the sandbox hides is undefined.
///
/// # Errors
/// What is undefined has no attributes.
pub(crate) fn own_attribute(value: &Value, name: &str) -> Result<Option<Value>, Error> {
    if let Value::Undefined(reason) = value {
        return Err(Error::new(reason.as_ref()));
    }
    let method = |known: &'static [&'static str], changing: &'static [&'static str]| {
        if changing.contains(&name) {
            return Some(hidden_attribute(value, name));
        }
        let name = known.iter().find(|known| **known == name)?;
        Some(Value::object(BoundMethod { value: value.clone(), name }))
    };
    let found = match value {
        Value::Text(_) | Value::Markup(_) => method(string_methods::NAMES, &[]),
        Value::List(_) => method(list_methods::NAMES, list_methods::CHANGING),
        Value::Tuple(_) => method(list_methods::TUPLE_NAMES, &[]),
        Value::Dict(_) => method(dict_methods::NAMES, dict_methods::CHANGING),
        Value::Int(_) | Value::Bool(_) | Value::Float(_) => {
            number_attribute(value, name).or_else(|| method(number_methods(value), &[]))
        }
        Value::Object(object) => object.attribute(name),
        Value::Undefined(_) | Value::None => None,
    };
    if found.is_none() && is_internal(name) {
        return Ok(Some(hidden_attribute(value, name)));
    }
    Ok(found)
}

/// Names that every object of Python has, and that no template may see.
fn is_internal(name: &str) -> bool {
    const INTERNAL: [&str; 12] = [
        "__class__",
        "__dir__",
        "__doc__",
        "__eq__",
        "__format__",
        "__getattribute__",
        "__hash__",
        "__init__",
        "__init_subclass__",
        "__new__",
        "__repr__",
        "__str__",
    ];
    INTERNAL.contains(&name)
}

fn hidden_attribute(value: &Value, name: &str) -> Value {
    Value::undefined(format!(
        "access to attribute '{name}' of '{}' object is not safe",
        value.type_name()
    ))
}

/// What stands for an attribute or item that is not there.
pub(crate) fn missing(value: &Value, key: &Value) -> Value {
    let of = match value {
        Value::None => "None".to_owned(),
        other => format!("{} object", other.type_name()),
    };
    Value::undefined(match key.as_text() {
        Some(name) => format!("'{of}' has no attribute '{name}'"),
        None => format!("{of} has no element {}", repr::repr(key).unwrap_or_default()),
    })
}

fn number_methods(value: &Value) -> &'static [&'static str] {
    match value {
        Value::Float(_) => &["is_integer", "conjugate"],
        _ => &["bit_length", "bit_count", "conjugate"],
    }
}

fn number_attribute(value: &Value, name: &str) -> Option<Value> {
    match (value, name) {
        (Value::Float(_), "real") => Some(value.clone()),
        (Value::Float(_), "imag") => Some(Value::Float(0.0)),
        (_, "real" | "numerator") => value.as_integer().map(Value::Int),
        (_, "imag") => Some(Value::int(0)),
        (_, "denominator") => Some(Value::int(1)),
        _ => None,
    }
}

fn call_number_method(value: &Value, name: &str, arguments: Arguments) -> Result<Value, Error> {
    let [] = arguments.positional(name, 0)?;
    match (value, value.as_integer(), name) {
        (Value::Float(float), _, "is_integer") => Ok(Value::Bool(float.fract() == 0.0)),
        (_, Some(whole), "bit_length") => {
            Ok(Value::int(i64::try_from(whole.to_big().bits()).unwrap_or(i64::MAX)))
        }
        (_, Some(whole), "bit_count") => Ok(Value::int(
            whole
                .to_big()
                .magnitude()
                .iter_u64_digits()
                .map(|word| i64::from(word.count_ones()))
                .sum(),
        )),
        (_, Some(whole), _) => Ok(Value::Int(whole)),
        _ => Ok(value.clone()),
    }
}

/// A method together with its value.
struct BoundMethod {
    value: Value,
    name: &'static str,
}

impl Object for BoundMethod {
    fn type_name(&self) -> &'static str {
        "builtin_function_or_method"
    }

    fn depth(&self) -> usize {
        self.value.depth() + 1
    }

    fn repr(&self) -> Result<String, Error> {
        Err(Error::new(format!(
            "the template prints the method '{}' of a '{}' object: it lacks its parentheses, or \
             brackets around the name of an item",
            self.name,
            self.value.type_name()
        )))
    }

    fn is_callable(&self) -> bool {
        true
    }

    fn call(&self, arguments: Arguments) -> Result<Value, Error> {
        match &self.value {
            Value::Text(text) => string_methods::call(text, self.name, arguments, look_up),
            Value::Markup(text) => markup_methods::call(text, self.name, arguments, look_up),
            Value::List(items) | Value::Tuple(items) => {
                list_methods::call(items, self.name, arguments)
            }
            Value::Dict(dict) => dict_methods::call(dict, self.name, arguments),
            other => call_number_method(other, self.name, arguments),
        }
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}

fn character(text: &str, position: i64) -> Option<String> {
    if text.is_ascii() {
        budget::count_text(text.len() / 16);
        let index = index_of(text.len(), position)?;
        return Some(text[index..=index].to_owned());
    }
    budget::count_text(text.len());
    let index = index_of(text.chars().count(), position)?;
    let character = text.chars().nth(index)?;
    Some(character.to_string())
}

/// `value[start:stop:step]`; nothing for what cannot be sliced.
///
/// # Errors
/// What is undefined, and a step of zero.
pub(crate) fn slice(value: &Value, slice: &Slice) -> Result<Option<Value>, Error> {
    let part = match value {
        Value::Undefined(reason) => return Err(Error::new(reason.as_ref())),
        Value::Text(text) | Value::Markup(text) => {
            budget::charge_text(text.len())?;
            let part = slice.characters(text)?;
            match value {
                Value::Markup(_) => Value::Markup(part.into()),
                _ => part.into(),
            }
        }
        Value::List(items) | Value::Tuple(items) => {
            let indices = slice.indices(items.len())?;
            budget::charge_items(indices.len())?;
            let part = indices.into_iter().map(|index| items[index].clone()).collect();
            if matches!(value, Value::List(_)) { Value::list(part) } else { Value::tuple(part) }
        }
        other => match other.downcast::<Range>() {
            Some(range) => Value::object(range.slice(slice)?),
            None => return Ok(None),
        },
    };
    Ok(Some(part))
}
