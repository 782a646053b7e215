//! What the interpreter knows while a template renders.

use std::rc::Rc;
use std::sync::Arc;

use super::super::ast::MAX_DEPTH;
use super::super::budget::{self, MAX_TEXT_BYTES};
use super::super::error::Error;
use super::super::globals::{self, Namespace};
use super::super::object::SharedObject;
use super::super::value::Value;
use super::scope::Scope;

/// What a scope takes up that is kept to the end.
const KEPT_BYTES: usize = 384;

/// One rendering of a template.
pub(crate) struct Interpreter {
    pub(super) scope: Rc<Scope>,
    /// The scope of the template itself.
    pub(super) root: Rc<Scope>,
    pub(super) out: String,
    /// Whether what is written is escaped for HTML.
    pub(super) escapes: bool,
    depth: usize,
    /// Scopes and namespaces that may hold what refers to them; they are emptied in the end.
    scopes: Vec<Rc<Scope>>,
    namespaces: Vec<SharedObject>,
}

impl Interpreter {
    /// An interpreter with the values that a template is given.
    pub(crate) fn new(context: impl IntoIterator<Item = (Arc<str>, Value)>) -> Self {
        let names = Scope::new(None);
        for (name, value) in globals::all() {
            names.set(Arc::from(name), value);
        }
        for (name, value) in context {
            names.set(name, value);
        }
        let root = Scope::new(Some(names));
        Self {
            scope: root.clone(),
            root,
            out: String::new(),
            escapes: false,
            depth: 0,
            scopes: Vec::new(),
            namespaces: Vec::new(),
        }
    }

    /// What has been written.
    pub(crate) fn into_text(mut self) -> String {
        std::mem::take(&mut self.out)
    }

    /// Counts a step.
    pub(super) fn step(&mut self) -> Result<(), Error> {
        budget::charge(1)
    }

    /// Runs something that may hold more of its kind.
    pub(super) fn nested<T>(
        &mut self,
        run: impl FnOnce(&mut Self) -> Result<T, Error>,
    ) -> Result<T, Error> {
        self.enter()?;
        let result = run(self);
        self.leave();
        result
    }

    /// Goes one level deeper.
    pub(super) fn enter(&mut self) -> Result<(), Error> {
        if self.depth == MAX_DEPTH {
            return Err(Error::new("maximum recursion depth exceeded"));
        }
        self.depth += 1;
        Ok(())
    }

    /// Goes back one level.
    pub(super) fn leave(&mut self) {
        self.depth -= 1;
    }

    /// Runs something in a scope, and goes back to the current one.
    pub(super) fn in_scope<T>(
        &mut self,
        scope: Rc<Scope>,
        run: impl FnOnce(&mut Self) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let outer = std::mem::replace(&mut self.scope, scope);
        let result = run(self);
        self.scope = outer;
        result
    }

    /// A scope inside of the current one.
    pub(super) fn inner_scope(&self) -> Rc<Scope> {
        Scope::new(Some(self.scope.clone()))
    }

    /// What something writes, instead of writing it.
    pub(super) fn capture<T>(
        &mut self,
        run: impl FnOnce(&mut Self) -> Result<T, Error>,
    ) -> Result<Value, Error> {
        let outer = std::mem::take(&mut self.out);
        let result = run(self);
        let written = std::mem::replace(&mut self.out, outer);
        budget::give_bytes(written.len());
        result?;
        Ok(if self.escapes { Value::Markup(written.into()) } else { written.into() })
    }

    pub(super) fn write(&mut self, text: &str) -> Result<(), Error> {
        if self.out.len() + text.len() > MAX_TEXT_BYTES {
            return Err(Error::limit(format!(
                "the template writes more than {MAX_TEXT_BYTES} bytes"
            )));
        }
        budget::take_bytes(text.len());
        budget::charge_text(text.len())?;
        self.out.push_str(text);
        Ok(())
    }

    /// Remembers a scope, which a macro or a loop refers to that may lie in it.
    pub(super) fn register_scope(&mut self, scope: &Rc<Scope>) {
        if !scope.is_registered.replace(true) {
            budget::take_bytes(KEPT_BYTES);
            self.scopes.push(scope.clone());
        }
    }

    /// Remembers a namespace, which may come to hold itself.
    pub(super) fn register_namespace(&mut self, object: &SharedObject, namespace: &Namespace) {
        if !namespace.is_registered.replace(true) {
            budget::take_bytes(KEPT_BYTES);
            self.namespaces.push(object.clone());
        }
    }
}

impl Drop for Interpreter {
    fn drop(&mut self) {
        self.scopes.iter().for_each(|scope| scope.clear());
        for object in &self.namespaces {
            if let Some(namespace) = object.as_any().downcast_ref::<Namespace>() {
                namespace.clear();
            }
        }
    }
}
