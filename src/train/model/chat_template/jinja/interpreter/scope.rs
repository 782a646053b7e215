//! Variables, and where they can be seen.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use super::super::value::Value;

/// The variables of a block, and the block around it.
pub(crate) struct Scope {
    variables: RefCell<Vec<(Arc<str>, Value)>>,
    parent: Option<Rc<Self>>,
}

impl Scope {
    pub(super) fn new(parent: Option<Rc<Self>>) -> Rc<Self> {
        Rc::new(Self { variables: RefCell::new(Vec::new()), parent })
    }

    /// The value of a name here or further out.
    pub(super) fn get(&self, name: &Arc<str>) -> Option<Value> {
        let mut scope = self;
        loop {
            let variables = scope.variables.borrow();
            let found = variables.iter().find(|(known, _)| is_same(known, name));
            if let Some((_, value)) = found {
                return Some(value.clone());
            }
            drop(variables);
            scope = scope.parent.as_deref()?;
        }
    }

    /// Sets a name here.
    pub(super) fn set(&self, name: Arc<str>, value: Value) {
        let mut variables = self.variables.borrow_mut();
        match variables.iter_mut().find(|(known, _)| is_same(known, &name)) {
            Some((_, old)) => *old = value,
            None => variables.push((name, value)),
        }
    }

    /// Lets go of all values.
    pub(super) fn clear(&self) {
        self.variables.take();
    }
}

fn is_same(a: &Arc<str>, b: &Arc<str>) -> bool {
    Arc::ptr_eq(a, b) || a == b
}
