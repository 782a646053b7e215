//! Items of lists and tuples, whose memory and nesting are counted.

use std::ops::Deref;

use super::budget;
use super::value::Value;

/// What a list takes up beside its items.
const OVERHEAD: usize = 96;

/// The items of a list or a tuple. Nothing changes them.
pub(crate) struct List {
    items: Vec<Value>,
    depth: usize,
    is_hashable: bool,
}

impl List {
    pub(crate) fn new(items: Vec<Value>) -> Self {
        let depth = 1 + items.iter().map(Value::depth).max().unwrap_or(0);
        let is_hashable = items.iter().all(Value::is_hashable);
        budget::count_depth(depth);
        let list = Self { items, depth, is_hashable };
        budget::take_bytes(list.bytes());
        list
    }

    fn bytes(&self) -> usize {
        OVERHEAD + self.items.capacity() * size_of::<Value>()
    }

    /// How deep values are nested in it, itself included.
    pub(crate) fn depth(&self) -> usize {
        self.depth
    }

    /// Whether all of its items can be keys.
    pub(crate) fn has_hashable_items(&self) -> bool {
        self.is_hashable
    }
}

impl Deref for List {
    type Target = [Value];

    fn deref(&self) -> &[Value] {
        &self.items
    }
}

impl Drop for List {
    fn drop(&mut self) {
        budget::give_bytes(self.bytes());
    }
}
