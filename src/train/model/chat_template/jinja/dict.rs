//! Dictionaries, and the values that can be their keys.

use std::hash::{Hash, Hasher};
use std::rc::Rc;

use indexmap::{Equivalent, IndexMap};

use super::budget;
use super::error::Error;
use super::integer::Integer;
use super::value::Value;

/// What a dictionary takes up, and each of its keys with its value.
const OVERHEAD: usize = 128;
const ENTRY_BYTES: usize = 144;

/// A key of a dictionary: a value that can be hashed.
#[derive(Clone)]
pub(crate) struct Key(Value);

impl Key {
    /// A value as a key.
    ///
    /// # Errors
    /// Lists and dictionaries are no keys.
    pub(crate) fn new(value: Value) -> Result<Self, Error> {
        budget::check()?;
        if value.is_hashable() {
            return Ok(Self(value));
        }
        Err(Error::new(format!("unhashable type: '{}'", value.type_name())))
    }

    /// A text as a key.
    pub(crate) fn text(text: &str) -> Self {
        Self(Value::from(text))
    }
}

/// Python finds a key that is the same object without comparing it, so that what is no number is found, too.
impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            (Value::Float(a), Value::Float(b)) if a.is_nan() && b.is_nan() => true,
            (a, b) => a.equals(b),
        }
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
    budget::count(1);
    if budget::is_spent() {
        return;
    }
    match value {
        Value::Bool(value) => i64::from(*value).hash(state),
        Value::Int(Integer::Small(value)) => value.hash(state),
        Value::Int(Integer::Big(value)) => value.hash(state),
        Value::Float(value) => match Integer::from_float(*value) {
            Ok(whole) if value.fract() == 0.0 => hash(&Value::Int(whole), state),
            _ if value.is_nan() => f64::NAN.to_bits().hash(state),
            _ => value.to_bits().hash(state),
        },
        Value::Text(text) | Value::Markup(text) => {
            budget::count_text(text.len());
            (**text).hash(state);
        }
        Value::Tuple(items) => items.iter().for_each(|item| hash(item, state)),
        Value::Object(object) => match object.hash() {
            Some(common) => common.hash(state),
            None => Rc::as_ptr(object).cast::<()>().hash(state),
        },
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
#[derive(Default)]
pub(crate) struct Dict {
    entries: IndexMap<Key, Value>,
    depth: usize,
    /// The memory that was counted for it.
    bytes: usize,
}

impl Dict {
    pub(crate) fn with_capacity(capacity: usize) -> Self {
        Self { entries: IndexMap::with_capacity(capacity), ..Self::default() }
    }

    pub(crate) fn insert(&mut self, key: Key, value: Value) {
        self.depth = self.depth.max(key.0.depth()).max(value.depth());
        budget::count_depth(self.depth());
        if self.entries.insert(key, value).is_none() {
            let bytes = if self.bytes == 0 { OVERHEAD + ENTRY_BYTES } else { ENTRY_BYTES };
            budget::take_bytes(bytes);
            self.bytes += bytes;
        }
    }

    /// The value of a text.
    pub(crate) fn get_text(&self, key: &str) -> Option<&Value> {
        self.entries.get(&TextKey(key))
    }

    /// The value of a key.
    ///
    /// # Errors
    /// The key is none.
    pub(crate) fn get(&self, key: &Value) -> Result<Option<&Value>, Error> {
        match key.as_text() {
            Some(text) => Ok(self.get_text(text)),
            None => Ok(self.entries.get(&Key::new(key.clone())?)),
        }
    }

    /// The key and the value at an index.
    pub(crate) fn nth(&self, index: usize) -> Option<(&Value, &Value)> {
        self.entries.get_index(index).map(|(key, value)| (&key.0, value))
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// How deep values are nested in it, itself included.
    pub(crate) fn depth(&self) -> usize {
        self.depth + 1
    }

    pub(crate) fn iter(&self) -> impl DoubleEndedIterator<Item = (&Value, &Value)> {
        self.entries.iter().map(|(key, value)| (&key.0, value))
    }

    /// A copy, which takes up as much.
    ///
    /// # Errors
    /// What has run out.
    pub(crate) fn copied(&self) -> Result<Self, Error> {
        let bytes = OVERHEAD + self.len() * ENTRY_BYTES;
        budget::check_room(bytes)?;
        budget::charge_items(self.len())?;
        budget::take_bytes(bytes);
        Ok(Self { entries: self.entries.clone(), depth: self.depth, bytes })
    }
}

impl Drop for Dict {
    fn drop(&mut self) {
        budget::give_bytes(self.bytes);
    }
}
