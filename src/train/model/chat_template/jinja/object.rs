//! Values with attributes or behaviour of their own.

use std::any::Any;
use std::ops::Deref;
use std::rc::Rc;

use super::arguments::Arguments;
use super::budget;
use super::error::Error;
use super::value::Value;

/// A value with attributes or behaviour of its own.
pub(crate) trait Object {
    /// The name of its type in Python.
    fn type_name(&self) -> &'static str;

    /// How deep values are nested in it, itself included.
    fn depth(&self) -> usize {
        1
    }

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

    /// What iterating over it gives at an index; `None` behind the end.
    fn nth(&self, _index: usize) -> Option<Value> {
        None
    }

    /// Whether it can be iterated over.
    fn is_iterable(&self) -> bool {
        false
    }

    /// Its length, if it has one.
    fn length(&self) -> Option<usize> {
        None
    }

    /// Whether it has both a length and items by position.
    fn is_sequence(&self) -> bool {
        false
    }

    /// Whether it equals another object that is not itself.
    fn equals(&self, _other: &dyn Object) -> bool {
        false
    }

    /// What equal objects have in common; `None` for those that equal only themselves.
    fn hash(&self) -> Option<u64> {
        None
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

/// An object that values share.
pub(crate) type SharedObject = Rc<Counted<dyn Object>>;

/// What sharing an object takes up beside it.
const OVERHEAD: usize = 48;

/// An object whose memory is counted.
pub(crate) struct Counted<T: ?Sized>(T);

impl<T> Counted<T> {
    pub(crate) fn new(object: T) -> Self {
        budget::take_bytes(OVERHEAD + size_of::<T>());
        Self(object)
    }
}

impl<T: ?Sized> Deref for Counted<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: ?Sized> Drop for Counted<T> {
    fn drop(&mut self) {
        budget::give_bytes(OVERHEAD + size_of_val(&self.0));
    }
}

/// How deep an object is nested that holds these values.
pub(crate) fn depth_of<'a>(values: impl IntoIterator<Item = &'a Value>) -> usize {
    1 + values.into_iter().map(Value::depth).max().unwrap_or(0)
}
