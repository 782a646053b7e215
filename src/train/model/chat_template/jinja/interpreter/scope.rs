//! Variables, and where they can be seen.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use super::super::value::Value;

/// The variables of a block, and the block around it.
pub(crate) struct Scope {
    variables: RefCell<Variables>,
    parent: Option<Rc<Self>>,
    /// Whether the interpreter empties it in the end.
    pub(super) is_registered: Cell<bool>,
}

impl Scope {
    pub(super) fn new(parent: Option<Rc<Self>>) -> Rc<Self> {
        Rc::new(Self { variables: RefCell::default(), parent, is_registered: Cell::new(false) })
    }

    /// The value of a name here or further out.
    pub(super) fn get(&self, name: &Arc<str>) -> Option<Value> {
        let mut scope = self;
        loop {
            if let Some(value) = scope.variables.borrow().get(name) {
                return Some(value.clone());
            }
            scope = scope.parent.as_deref()?;
        }
    }

    /// Sets a name here.
    pub(super) fn set(&self, name: Arc<str>, value: Value) {
        self.variables.borrow_mut().set(name, value);
    }

    /// Lets go of all values.
    pub(super) fn clear(&self) {
        self.variables.take();
    }
}

/// Most variables that are looked through one after the other.
const MAX_LISTED: usize = 16;

/// Variables by their names. Most scopes have a few, which are listed; many are found by their hashes.
#[derive(Default)]
struct Variables {
    listed: Vec<(Arc<str>, Value)>,
    more: HashMap<Arc<str>, Value>,
}

impl Variables {
    fn get(&self, name: &Arc<str>) -> Option<&Value> {
        let listed = self.listed.iter().find(|(known, _)| is_same(known, name));
        match listed {
            Some((_, value)) => Some(value),
            None if self.more.is_empty() => None,
            None => self.more.get(name),
        }
    }

    fn set(&mut self, name: Arc<str>, value: Value) {
        if let Some((_, old)) = self.listed.iter_mut().find(|(known, _)| is_same(known, &name)) {
            *old = value;
        } else if self.listed.len() < MAX_LISTED {
            self.listed.push((name, value));
        } else {
            self.more.insert(name, value);
        }
    }
}

fn is_same(a: &Arc<str>, b: &Arc<str>) -> bool {
    Arc::ptr_eq(a, b) || a == b
}
