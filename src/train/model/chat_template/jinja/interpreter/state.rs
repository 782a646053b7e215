//! What the interpreter knows while a template renders.

use std::rc::Rc;
use std::sync::Arc;

use super::super::error::{Error, MAX_TEXT_BYTES};
use super::super::globals::{self, Namespace};
use super::super::value::{Object, Value};
use super::scope::Scope;

/// Steps that a template may take: far more than a long conversation needs, and an endless loop ends.
const FUEL: u64 = 20_000_000;
/// How deep expressions, blocks and calls of macros may be nested while they run.
const MAX_DEPTH: usize = 300;

/// One rendering of a template.
pub(crate) struct Interpreter {
    pub(super) scope: Rc<Scope>,
    /// The scope of the template itself.
    pub(super) root: Rc<Scope>,
    pub(super) out: String,
    /// Whether what is written is escaped for HTML.
    pub(super) escapes: bool,
    fuel: u64,
    depth: usize,
    /// Scopes and namespaces that may hold what refers to them; they are emptied in the end.
    scopes: Vec<Rc<Scope>>,
    namespaces: Vec<Rc<dyn Object>>,
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
            fuel: FUEL,
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
        self.fuel = self.fuel.checked_sub(1).ok_or_else(|| Error::endless(FUEL))?;
        Ok(())
    }

    /// Runs something that may hold more of its kind.
    pub(super) fn nested<T>(
        &mut self,
        run: impl FnOnce(&mut Self) -> Result<T, Error>,
    ) -> Result<T, Error> {
        if self.depth == MAX_DEPTH {
            return Err(Error::new("maximum recursion depth exceeded"));
        }
        self.depth += 1;
        let result = run(self);
        self.depth -= 1;
        result
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
        result?;
        Ok(if self.escapes { Value::Markup(written.into()) } else { written.into() })
    }

    pub(super) fn write(&mut self, text: &str) -> Result<(), Error> {
        if self.out.len() + text.len() > MAX_TEXT_BYTES {
            return Err(Error::new(format!(
                "the template writes more than {MAX_TEXT_BYTES} bytes"
            )));
        }
        self.out.push_str(text);
        Ok(())
    }

    /// Remembers the current scope, which a macro refers to that may lie in it.
    pub(super) fn register_scope(&mut self) {
        if !self.scopes.iter().any(|known| Rc::ptr_eq(known, &self.scope)) {
            self.scopes.push(self.scope.clone());
        }
    }

    /// Remembers a namespace, which may come to hold itself.
    pub(super) fn register_namespace(&mut self, object: &Rc<dyn Object>, namespace: &Namespace) {
        if !namespace.is_registered.replace(true) {
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
