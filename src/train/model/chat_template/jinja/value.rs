//! The values of a template, as Python has them.

use std::rc::Rc;
use std::sync::Arc;

use super::budget;
use super::dict::{Dict, Key};
use super::error::{Error, shortened};
use super::integer::Integer;
use super::items::Items;
use super::list::List;
use super::object::{Counted, Object, SharedObject};
use super::text::Text;

/// A value of a template.
#[derive(Clone)]
pub(crate) enum Value {
    /// What is not there, with the reason.
    Undefined(Text),
    /// `None`.
    None,
    /// `True` or `False`.
    Bool(bool),
    /// A whole number.
    Int(Integer),
    /// A number with a fraction.
    Float(f64),
    /// A text.
    Text(Text),
    /// A text that is HTML, where a filter made it so.
    Markup(Text),
    /// A list; nothing in a template changes one.
    List(Rc<List>),
    /// A tuple.
    Tuple(Rc<List>),
    /// A dictionary in the order of its insertions.
    Dict(Rc<Dict>),
    /// Everything else: functions, loops, ranges, generators.
    Object(SharedObject),
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.into())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text.into())
    }
}

/// A text of the template itself.
impl From<Arc<str>> for Value {
    fn from(text: Arc<str>) -> Self {
        Self::Text(text.into())
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl From<usize> for Value {
    fn from(value: usize) -> Self {
        Self::Int(value.into())
    }
}

impl Value {
    pub(crate) fn list(items: Vec<Self>) -> Self {
        Self::List(Rc::new(List::new(items)))
    }

    pub(crate) fn tuple(items: Vec<Self>) -> Self {
        Self::Tuple(Rc::new(List::new(items)))
    }

    pub(crate) fn dict(dict: Dict) -> Self {
        Self::Dict(Rc::new(dict))
    }

    /// A dictionary of named values.
    pub(crate) fn record<'a>(fields: impl IntoIterator<Item = (&'a str, Self)>) -> Self {
        let mut dict = Dict::default();
        for (name, value) in fields {
            dict.insert(Key::text(name), value);
        }
        Self::dict(dict)
    }

    /// A whole number.
    pub(crate) fn int(value: i64) -> Self {
        Self::Int(value.into())
    }

    /// What is not there, with the reason.
    pub(crate) fn undefined(reason: impl Into<String>) -> Self {
        Self::Undefined(shortened(reason.into()).into())
    }

    /// An object.
    pub(crate) fn object(object: impl Object + 'static) -> Self {
        budget::count_depth(object.depth());
        Self::Object(Rc::new(Counted::new(object)))
    }

    /// The text, if it is one.
    pub(crate) fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) | Self::Markup(text) => Some(text),
            _ => None,
        }
    }

    /// A text in the place of this one, which is HTML where this one is.
    pub(crate) fn with_text(&self, text: String) -> Self {
        match self {
            Self::Markup(_) => Self::Markup(text.into()),
            _ => Self::Text(text.into()),
        }
    }

    /// The whole number, if it is one; truth values are numbers, as in Python.
    pub(crate) fn as_integer(&self) -> Option<Integer> {
        match self {
            Self::Int(value) => Some(value.clone()),
            Self::Bool(value) => Some(i64::from(*value).into()),
            _ => None,
        }
    }

    /// An object of a known type.
    pub(crate) fn downcast<T: 'static>(&self) -> Option<&T> {
        match self {
            Self::Object(object) => object.as_any().downcast_ref(),
            _ => None,
        }
    }

    /// The values of a dictionary by their names, if it is one.
    pub(crate) fn named(&self) -> Option<Vec<(&str, Self)>> {
        let Self::Dict(dict) = self else { return None };
        dict.iter().map(|(name, value)| Some((name.as_text()?, value.clone()))).collect()
    }

    /// Whether it is not there.
    pub(crate) fn is_undefined(&self) -> bool {
        matches!(self, Self::Undefined(_))
    }

    /// The name of its type in Python.
    pub(crate) fn type_name(&self) -> &'static str {
        match self {
            Self::Undefined(_) => "Undefined",
            Self::None => "NoneType",
            Self::Bool(_) => "bool",
            Self::Int(_) => "int",
            Self::Float(_) => "float",
            Self::Text(_) => "str",
            Self::Markup(_) => "Markup",
            Self::List(_) => "list",
            Self::Tuple(_) => "tuple",
            Self::Dict(_) => "dict",
            Self::Object(object) => object.type_name(),
        }
    }

    /// Whether it counts as true.
    pub(crate) fn is_true(&self) -> bool {
        match self {
            Self::Undefined(_) | Self::None => false,
            Self::Bool(value) => *value,
            Self::Int(value) => !value.is_zero(),
            Self::Float(value) => *value != 0.0,
            Self::Text(text) | Self::Markup(text) => !text.is_empty(),
            Self::List(items) | Self::Tuple(items) => !items.is_empty(),
            Self::Dict(dict) => dict.len() > 0,
            Self::Object(object) => object.length() != Some(0),
        }
    }

    /// Its length, as `len()` gives it; texts count characters.
    pub(crate) fn length(&self) -> Result<usize, Error> {
        match self {
            Self::Undefined(_) => Ok(0),
            Self::Text(text) | Self::Markup(text) => {
                budget::charge_text(text.len())?;
                Ok(text.chars().count())
            }
            Self::List(items) | Self::Tuple(items) => Ok(items.len()),
            Self::Dict(dict) => Ok(dict.len()),
            Self::Object(object) if object.length().is_some() => Ok(object.length().unwrap_or(0)),
            _ => Err(Error::new(format!("object of type '{}' has no len()", self.type_name()))),
        }
    }

    /// What iterating over it gives, if it can be iterated over.
    pub(crate) fn try_iterate(&self) -> Option<Items> {
        Some(match self {
            Self::Undefined(_) => Items::None,
            Self::Text(text) | Self::Markup(text) => Items::Characters(text.clone(), 0),
            Self::List(items) | Self::Tuple(items) => Items::List(items.clone(), 0),
            Self::Dict(dict) => Items::Keys(dict.clone(), 0),
            Self::Object(object) if object.is_iterable() => Items::Object(object.clone(), 0),
            _ => return None,
        })
    }

    /// What iterating over it gives.
    ///
    /// # Errors
    /// It cannot be iterated over.
    pub(crate) fn iterate(&self) -> Result<Items, Error> {
        self.try_iterate()
            .ok_or_else(|| Error::new(format!("'{}' object is not iterable", self.type_name())))
    }

    /// All that iterating over it gives.
    pub(crate) fn to_vec(&self) -> Result<Vec<Self>, Error> {
        let mut values = Vec::new();
        for value in self.iterate()? {
            values.push(value?);
            budget::check_items(values.len())?;
        }
        Ok(values)
    }

    /// How deep values are nested in it; 0 for one that holds none.
    pub(crate) fn depth(&self) -> usize {
        match self {
            Self::List(items) | Self::Tuple(items) => items.depth(),
            Self::Dict(dict) => dict.depth(),
            Self::Object(object) => object.depth(),
            _ => 0,
        }
    }

    /// Whether it can be a key of a dictionary.
    pub(crate) fn is_hashable(&self) -> bool {
        match self {
            Self::List(_) | Self::Dict(_) => false,
            Self::Tuple(items) => items.has_hashable_items(),
            _ => true,
        }
    }
}
