//! The values of a template, as Python has them.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::hash::{Hash, Hasher};
use std::rc::Rc;
use std::sync::Arc;

use indexmap::{Equivalent, IndexMap};

use super::error::Error;
use super::integer::Integer;

/// A value of a template.
#[derive(Clone)]
pub(crate) enum Value {
    /// What is not there, with the reason.
    Undefined(Arc<str>),
    /// `None`.
    None,
    /// `True` or `False`.
    Bool(bool),
    /// A whole number.
    Int(Integer),
    /// A number with a fraction.
    Float(f64),
    /// A text.
    Text(Arc<str>),
    /// A text that is HTML, where a filter made it so.
    Markup(Arc<str>),
    /// A list; nothing in a template changes one.
    List(Rc<Vec<Self>>),
    /// A tuple.
    Tuple(Rc<Vec<Self>>),
    /// A dictionary in the order of its insertions.
    Dict(Rc<Dict>),
    /// Everything else: functions, loops, ranges, generators.
    Object(Rc<dyn Object>),
}

/// A value with attributes or behaviour of its own.
pub(crate) trait Object {
    /// The name of its type in Python.
    fn type_name(&self) -> &'static str;

    /// What printing it writes.
    fn repr(&self) -> Result<String, Error> {
        Ok(format!("<{}>", self.type_name()))
    }

    /// An attribute, without falling back to an item.
    fn attribute(&self, _name: &str) -> Option<Value> {
        None
    }

    /// An item by its position, counted from the end where negative; `None` for objects without items.
    fn item(&self, _position: i64) -> Option<Value> {
        None
    }

    /// What iterating over it gives, if it can be.
    fn iterate(&self) -> Option<Items> {
        None
    }

    /// Its length, if it has one.
    fn length(&self) -> Option<usize> {
        None
    }

    /// Whether it has both a length and items by position.
    fn is_sequence(&self) -> bool {
        false
    }

    /// Whether it can be called.
    fn is_callable(&self) -> bool {
        false
    }

    /// Calls it.
    fn call(&self, _arguments: Arguments) -> Result<Value, Error> {
        Err(Error::new(format!("'{}' object is not callable", self.type_name())))
    }

    /// Itself, for those who know its type.
    fn as_any(&self) -> &dyn Any;
}

/// What the interpreter does for filters that apply others.
pub(crate) trait Runtime {
    /// Applies a filter by its name.
    fn apply_filter(
        &mut self,
        name: &str,
        value: Value,
        arguments: Arguments,
    ) -> Result<Value, Error>;

    /// Applies a test by its name.
    fn apply_test(&mut self, name: &str, value: Value, arguments: Arguments)
    -> Result<bool, Error>;

    /// Whether texts are escaped for HTML.
    fn escapes(&self) -> bool;
}

/// The arguments of a call.
#[derive(Clone, Default)]
pub(crate) struct Arguments {
    pub(crate) positional: Vec<Value>,
    pub(crate) keywords: Vec<(Arc<str>, Value)>,
}

impl Arguments {
    /// The arguments by the names of parameters, of which the first `required` must be there.
    ///
    /// # Errors
    /// Arguments that are missing, too many, unknown or given twice.
    pub(crate) fn bind<const N: usize>(
        self,
        function: &str,
        names: [&str; N],
        required: usize,
    ) -> Result<[Option<Value>; N], Error> {
        let given = self.positional.len();
        if given > N {
            return Err(Error::new(format!(
                "{function}() takes at most {N} arguments ({given} given)"
            )));
        }
        let mut positional = self.positional.into_iter();
        let mut bound: [Option<Value>; N] = std::array::from_fn(|_| positional.next());
        for (name, value) in self.keywords {
            let Some(index) = names.iter().position(|known| **known == *name) else {
                return Err(Error::new(format!(
                    "{function}() got an unexpected keyword argument '{name}'"
                )));
            };
            if bound[index].replace(value).is_some() {
                return Err(Error::new(format!(
                    "{function}() got multiple values for argument '{name}'"
                )));
            }
        }
        if let Some(missing) = (0..required).find(|index| bound[*index].is_none()) {
            return Err(Error::new(format!(
                "{function}() missing required argument: '{}'",
                names[missing]
            )));
        }
        Ok(bound)
    }

    /// Arguments of a function that takes no keywords.
    pub(crate) fn positional<const N: usize>(
        self,
        function: &str,
        required: usize,
    ) -> Result<[Option<Value>; N], Error> {
        if !self.keywords.is_empty() {
            return Err(Error::new(format!("{function}() takes no keyword arguments")));
        }
        self.bind(function, [""; N], 0).and_then(|bound| {
            let given = bound.iter().flatten().count();
            if given >= required {
                return Ok(bound);
            }
            Err(Error::new(format!(
                "{function}() takes at least {required} arguments ({given} given)"
            )))
        })
    }
}

/// A key of a dictionary: a value that can be hashed.
#[derive(Clone)]
pub(crate) struct Key(Value);

impl Key {
    /// # Errors
    /// Lists and dictionaries are no keys.
    pub(crate) fn new(value: Value) -> Result<Self, Error> {
        let is_hashable = match &value {
            Value::List(_) | Value::Dict(_) => false,
            Value::Tuple(items) => items.iter().all(|item| Self::new(item.clone()).is_ok()),
            _ => true,
        };
        if is_hashable {
            return Ok(Self(value));
        }
        Err(Error::new(format!("unhashable type: '{}'", value.type_name())))
    }

    /// A text as a key.
    pub(crate) fn text(text: &str) -> Self {
        Self(Value::from(text))
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.0.equals(&other.0)
    }
}

impl Eq for Key {}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        hash(&self.0, state);
    }
}

/// Equal values have equal hashes, so `1`, `1.0` and `True` have one.
fn hash<H: Hasher>(value: &Value, state: &mut H) {
    match value {
        Value::Bool(value) => hash(&Value::Int(i64::from(*value).into()), state),
        Value::Int(Integer::Small(value)) => value.hash(state),
        Value::Int(Integer::Big(value)) => value.hash(state),
        Value::Float(value) => match Integer::from_float(*value) {
            Ok(whole) if value.fract() == 0.0 => hash(&Value::Int(whole), state),
            _ => value.to_bits().hash(state),
        },
        Value::Text(text) | Value::Markup(text) => text.hash(state),
        Value::Tuple(items) => items.iter().for_each(|item| hash(item, state)),
        Value::Object(object) => Rc::as_ptr(object).cast::<()>().hash(state),
        Value::Undefined(_) | Value::None | Value::List(_) | Value::Dict(_) => 0_u8.hash(state),
    }
}

/// A text that looks up a key.
struct TextKey<'a>(&'a str);

impl Hash for TextKey<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}

impl Equivalent<Key> for TextKey<'_> {
    fn equivalent(&self, key: &Key) -> bool {
        key.0.as_text() == Some(self.0)
    }
}

/// A dictionary.
#[derive(Clone, Default)]
pub(crate) struct Dict(IndexMap<Key, Value>);

impl Dict {
    pub(crate) fn with_capacity(capacity: usize) -> Self {
        Self(IndexMap::with_capacity(capacity))
    }

    pub(crate) fn insert(&mut self, key: Key, value: Value) {
        self.0.insert(key, value);
    }

    /// The value of a text.
    pub(crate) fn get_text(&self, key: &str) -> Option<&Value> {
        self.0.get(&TextKey(key))
    }

    /// The value of a key.
    ///
    /// # Errors
    /// The key is none.
    pub(crate) fn get(&self, key: &Value) -> Result<Option<&Value>, Error> {
        match key.as_text() {
            Some(text) => Ok(self.get_text(text)),
            None => Ok(self.0.get(&Key::new(key.clone())?)),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn iter(&self) -> impl DoubleEndedIterator<Item = (&Value, &Value)> {
        self.0.iter().map(|(key, value)| (&key.0, value))
    }
}

/// What a generator has left, and the error that waits at its end.
pub(crate) struct Stream {
    items: RefCell<VecDeque<Value>>,
    error: RefCell<Option<Error>>,
}

impl Stream {
    /// A generator of what an iterator gives.
    pub(crate) fn value(items: impl Iterator<Item = Result<Value, Error>>) -> Value {
        let mut given = VecDeque::new();
        let mut error = None;
        for item in items {
            match item {
                Ok(item) => given.push_back(item),
                Err(wrong) => {
                    error = Some(wrong);
                    break;
                }
            }
        }
        Value::Object(Rc::new(Self { items: RefCell::new(given), error: RefCell::new(error) }))
    }

    /// A generator that fails when it is used.
    pub(crate) fn failing(error: Error) -> Value {
        Self::value(std::iter::once(Err(error)))
    }

    fn next(&self) -> Option<Result<Value, Error>> {
        let item = self.items.borrow_mut().pop_front();
        item.map(Ok).or_else(|| self.error.borrow_mut().take().map(Err))
    }
}

impl Object for Stream {
    fn type_name(&self) -> &'static str {
        "generator"
    }

    fn repr(&self) -> Result<String, Error> {
        Err(Error::new("the template prints a generator: it lacks a filter such as join or list"))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// What iterating over a value gives, one by one.
pub(crate) enum Items {
    /// Those of a list from a position on.
    Shared(Rc<Vec<Value>>, Cell<usize>),
    /// Those that were made for it.
    Owned(std::vec::IntoIter<Value>),
    /// Those that a generator has left.
    Stream(Rc<dyn Object>),
}

impl From<Vec<Value>> for Items {
    fn from(values: Vec<Value>) -> Self {
        Self::Owned(values.into_iter())
    }
}

impl Iterator for Items {
    type Item = Result<Value, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        match self {
            Self::Shared(list, position) => {
                let item = list.get(position.get())?.clone();
                position.set(position.get() + 1);
                Some(Ok(item))
            }
            Self::Owned(values) => values.next().map(Ok),
            Self::Stream(object) => object.as_any().downcast_ref::<Stream>()?.next(),
        }
    }
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
        Self::List(Rc::new(items))
    }

    pub(crate) fn tuple(items: Vec<Self>) -> Self {
        Self::Tuple(Rc::new(items))
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
    pub(crate) fn undefined(reason: impl Into<Arc<str>>) -> Self {
        Self::Undefined(reason.into())
    }

    /// An object.
    pub(crate) fn object(object: impl Object + 'static) -> Self {
        Self::Object(Rc::new(object))
    }

    /// The text, if it is one.
    pub(crate) fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) | Self::Markup(text) => Some(text),
            _ => None,
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
            Self::Text(text) | Self::Markup(text) => Ok(text.chars().count()),
            Self::List(items) | Self::Tuple(items) => Ok(items.len()),
            Self::Dict(dict) => Ok(dict.len()),
            Self::Object(object) if object.length().is_some() => Ok(object.length().unwrap_or(0)),
            _ => Err(Error::new(format!("object of type '{}' has no len()", self.type_name()))),
        }
    }

    /// What iterating over it gives, if it can be iterated over.
    pub(crate) fn try_iterate(&self) -> Option<Items> {
        Some(match self {
            Self::Undefined(_) => Vec::new().into(),
            Self::Text(text) | Self::Markup(text) => text
                .chars()
                .map(|character| Self::from(character.encode_utf8(&mut [0; 4]) as &str))
                .collect::<Vec<Self>>()
                .into(),
            Self::List(items) | Self::Tuple(items) => Items::Shared(items.clone(), Cell::new(0)),
            Self::Dict(dict) => dict.iter().map(|(key, _)| key.clone()).collect::<Vec<_>>().into(),
            Self::Object(object) if object.as_any().is::<Stream>() => Items::Stream(object.clone()),
            Self::Object(object) => object.iterate()?,
            Self::None | Self::Bool(_) | Self::Int(_) | Self::Float(_) => return None,
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
        self.iterate()?.collect()
    }

    /// `==`.
    pub(crate) fn equals(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Undefined(_), Self::Undefined(_)) | (Self::None, Self::None) => true,
            (Self::Text(a) | Self::Markup(a), Self::Text(b) | Self::Markup(b)) => a == b,
            (Self::Float(a), Self::Float(b)) => a == b,
            (Self::Float(float), number) | (number, Self::Float(float)) => {
                number.as_integer().is_some_and(|whole| {
                    whole.compare_float(*float).is_some_and(|order| order.is_eq())
                })
            }
            (Self::List(a), Self::List(b)) | (Self::Tuple(a), Self::Tuple(b)) => {
                Rc::ptr_eq(a, b)
                    || (a.len() == b.len() && a.iter().zip(b.iter()).all(|(a, b)| a.equals(b)))
            }
            (Self::Dict(a), Self::Dict(b)) => {
                let same = |(key, value): (&Self, &Self)| {
                    b.get(key).is_ok_and(|other| other.is_some_and(|other| value.equals(other)))
                };
                Rc::ptr_eq(a, b) || (a.len() == b.len() && a.iter().all(same))
            }
            (Self::Object(a), Self::Object(b)) => {
                // Ranges are equal where their numbers are; everything else only to itself.
                let both_ranges = a.type_name() == "range" && b.type_name() == "range";
                std::ptr::addr_eq(Rc::as_ptr(a), Rc::as_ptr(b))
                    || (both_ranges
                        && self.to_vec().ok().zip(other.to_vec().ok()).is_some_and(|(a, b)| {
                            a.len() == b.len() && a.iter().zip(&b).all(|(a, b)| a.equals(b))
                        }))
            }
            _ => match (self.as_integer(), other.as_integer()) {
                (Some(a), Some(b)) => a == b,
                _ => false,
            },
        }
    }

    /// Whether lists in it are nested deeper than so many levels.
    pub(crate) fn is_deeper_than(&self, levels: usize) -> bool {
        let Some(inner) = levels.checked_sub(1) else {
            return matches!(self, Self::List(_) | Self::Tuple(_) | Self::Dict(_));
        };
        match self {
            Self::List(items) | Self::Tuple(items) => {
                items.iter().any(|item| item.is_deeper_than(inner))
            }
            Self::Dict(dict) => dict.iter().any(|(_, value)| value.is_deeper_than(inner)),
            _ => false,
        }
    }
}
