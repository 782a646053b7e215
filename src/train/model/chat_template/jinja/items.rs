//! What iterating over values gives, and generators.

use std::any::Any;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use super::budget;
use super::dict::Dict;
use super::error::Error;
use super::list::List;
use super::object::{Object, SharedObject, depth_of};
use super::text::Text;
use super::value::Value;

/// What a generator has left, and the error that waits at its end.
pub(crate) struct Stream {
    items: RefCell<VecDeque<Value>>,
    error: RefCell<Option<Error>>,
    depth: usize,
    bytes: usize,
}

impl Stream {
    /// A generator of what an iterator gives.
    pub(crate) fn value(items: impl Iterator<Item = Result<Value, Error>>) -> Value {
        let mut given = VecDeque::new();
        let mut error = None;
        for item in items {
            let item = budget::check_items(given.len()).and(item);
            match item {
                Ok(item) => given.push_back(item),
                Err(wrong) => {
                    error = Some(wrong);
                    break;
                }
            }
        }
        let depth = depth_of(&given);
        budget::count_depth(depth);
        let bytes = given.capacity() * size_of::<Value>();
        budget::take_bytes(bytes);
        let (items, error) = (RefCell::new(given), RefCell::new(error));
        Value::object(Self { items, error, depth, bytes })
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

impl Drop for Stream {
    fn drop(&mut self) {
        budget::give_bytes(self.bytes);
    }
}

impl Object for Stream {
    fn type_name(&self) -> &'static str {
        "generator"
    }

    fn depth(&self) -> usize {
        self.depth
    }

    fn repr(&self) -> Result<String, Error> {
        Err(Error::new("the template prints a generator: it lacks a filter such as join or list"))
    }

    fn is_iterable(&self) -> bool {
        true
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// What iterating over a value gives, one by one.
pub(crate) enum Items {
    /// Nothing.
    None,
    /// Those of a list from a position on.
    List(Rc<List>, usize),
    /// The keys of a dictionary from a position on.
    Keys(Rc<Dict>, usize),
    /// The characters of a text from a byte on.
    Characters(Text, usize),
    /// Those that an object gives from an index on.
    Object(SharedObject, usize),
}

impl Items {
    fn next_value(&mut self) -> Option<Result<Value, Error>> {
        match self {
            Self::None => None,
            Self::List(list, position) => {
                *position += 1;
                list.get(*position - 1).cloned().map(Ok)
            }
            Self::Keys(dict, position) => {
                *position += 1;
                dict.nth(*position - 1).map(|(key, _)| Ok(key.clone()))
            }
            Self::Characters(text, at) => {
                let character = text[*at..].chars().next()?;
                *at += character.len_utf8();
                Some(Ok(Value::from(&*character.encode_utf8(&mut [0; 4]))))
            }
            Self::Object(object, index) => {
                if let Some(stream) = object.as_any().downcast_ref::<Stream>() {
                    return stream.next();
                }
                *index += 1;
                object.nth(*index - 1).map(Ok)
            }
        }
    }
}

impl Iterator for Items {
    type Item = Result<Value, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        let item = self.next_value()?;
        Some(budget::charge(1).and(item))
    }
}
