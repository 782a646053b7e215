//! Loops, and the variable `loop` in them.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

use super::super::ast::For;
use super::super::error::Error;
use super::super::globals::Function;
use super::super::items::Items;
use super::super::object::Object;
use super::super::value::Value;
use super::scope::Scope;
use super::state::Interpreter;

/// A loop that runs.
pub(super) struct LoopState {
    pub(super) definition: Arc<For>,
    /// The scope around the loop.
    pub(super) scope: Rc<Scope>,
    source: RefCell<Items>,
    /// Items that were looked at before their turn.
    ahead: RefCell<VecDeque<Value>>,
    /// The number of items, once it is known.
    length: Cell<Option<usize>>,
    /// How many items had their turn.
    passed: Cell<usize>,
    before: RefCell<Option<Value>>,
    current: RefCell<Option<Value>>,
    changed: RefCell<Option<Value>>,
    /// Whether it has ended; it keeps nothing then that may hold itself.
    is_over: Cell<bool>,
    /// How deep values are nested in what it iterates over.
    nesting: usize,
    /// How many loops it runs in that called each other, itself included.
    pub(super) depth: usize,
}

impl LoopState {
    pub(super) fn new(
        definition: Arc<For>,
        scope: Rc<Scope>,
        iterable: &Value,
        depth: usize,
    ) -> Result<Rc<Self>, Error> {
        let is_whole = definition.condition.is_none();
        let length = Cell::new(iterable.length().ok().filter(|_| is_whole));
        Ok(Rc::new(Self {
            definition,
            scope,
            source: RefCell::new(iterable.iterate()?),
            ahead: RefCell::default(),
            length,
            passed: Cell::new(0),
            before: RefCell::default(),
            current: RefCell::default(),
            changed: RefCell::default(),
            is_over: Cell::new(false),
            nesting: iterable.depth(),
            depth,
        }))
    }

    /// The next item that has its turn.
    pub(super) fn next(&self, interpreter: &mut Interpreter) -> Result<Option<Value>, Error> {
        let ahead = self.ahead.borrow_mut().pop_front();
        let next = match ahead {
            Some(item) => Some(item),
            None => self.pull(interpreter)?,
        };
        if let Some(item) = &next {
            self.passed.set(self.passed.get() + 1);
            let before = self.current.replace(Some(item.clone()));
            self.before.replace(before);
        }
        Ok(next)
    }

    /// The next item of the source that fulfils the loop's condition.
    fn pull(&self, interpreter: &mut Interpreter) -> Result<Option<Value>, Error> {
        loop {
            let Some(item) = self.source.borrow_mut().next() else { return Ok(None) };
            let item = item?;
            interpreter.step()?;
            let Some(condition) = &self.definition.condition else { return Ok(Some(item)) };
            let scope = Scope::new(Some(self.scope.clone()));
            let is_taken = interpreter.in_scope(scope, |interpreter| {
                interpreter.assign(&self.definition.target, item.clone())?;
                Ok(interpreter.evaluate(condition)?.is_true())
            })?;
            if is_taken {
                return Ok(Some(item));
            }
        }
    }

    /// Looks at what an attribute tells of: the next item, or all that are left.
    pub(super) fn look_ahead(
        &self,
        interpreter: &mut Interpreter,
        attribute: &str,
    ) -> Result<(), Error> {
        let wanted = match attribute {
            "last" | "nextitem" => 1,
            "length" | "revindex" | "revindex0" if self.length.get().is_none() => usize::MAX,
            _ => return Ok(()),
        };
        while self.ahead.borrow().len() < wanted {
            let Some(item) = self.pull(interpreter)? else { break };
            self.ahead.borrow_mut().push_back(item);
        }
        if wanted == usize::MAX {
            self.length.set(Some(self.passed.get() + self.ahead.borrow().len()));
        }
        Ok(())
    }

    fn cycle(&self, mut items: Vec<Value>) -> Result<Value, Error> {
        if items.is_empty() {
            return Err(Error::new("no items for cycling given"));
        }
        let index = self.passed.get().saturating_sub(1) % items.len();
        Ok(items.swap_remove(index))
    }

    fn has_changed(&self, values: Vec<Value>) -> bool {
        let values = Value::tuple(values);
        let is_new = !self.changed.borrow().as_ref().is_some_and(|last| last.equals(&values));
        if is_new && !self.is_over.get() {
            self.changed.replace(Some(values));
        }
        is_new
    }
}

/// The variable `loop`.
pub(super) struct Loop(pub(super) Rc<LoopState>);

impl Object for Loop {
    fn type_name(&self) -> &'static str {
        "LoopContext"
    }

    fn depth(&self) -> usize {
        self.0.nesting + 1
    }

    fn repr(&self) -> Result<String, Error> {
        let length = self.length().unwrap_or(0);
        Ok(format!("<LoopContext {}/{length}>", self.0.passed.get()))
    }

    fn attribute(&self, name: &str) -> Option<Value> {
        let state = &self.0;
        let passed = state.passed.get();
        let length = || state.length.get().unwrap_or(passed);
        let or_undefined =
            |value: Option<Value>, reason: &str| value.unwrap_or_else(|| Value::undefined(reason));
        Some(match name {
            "index" => passed.into(),
            "index0" => passed.saturating_sub(1).into(),
            "revindex" => (length() + 1).saturating_sub(passed).into(),
            "revindex0" => length().saturating_sub(passed).into(),
            "first" => (passed == 1).into(),
            "last" => state.ahead.borrow().is_empty().into(),
            "length" => length().into(),
            "depth" => state.depth.into(),
            "depth0" => (state.depth - 1).into(),
            "previtem" => or_undefined(state.before.borrow().clone(), "there is no previous item"),
            "nextitem" => {
                or_undefined(state.ahead.borrow().front().cloned(), "there is no next item")
            }
            "cycle" => {
                let state = state.clone();
                Function::holding("cycle", self.depth(), move |arguments| {
                    state.cycle(arguments.positional)
                })
            }
            "changed" => {
                let state = state.clone();
                Function::holding("changed", self.depth(), move |arguments| {
                    Ok(state.has_changed(arguments.positional).into())
                })
            }
            _ => return None,
        })
    }

    fn length(&self) -> Option<usize> {
        Some(self.0.length.get().unwrap_or_else(|| self.0.passed.get()))
    }

    fn is_callable(&self) -> bool {
        true
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// How the body of a loop ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flow {
    Next,
    Break,
    Continue,
}

impl Interpreter {
    /// Runs a loop over a value.
    pub(super) fn run_loop(
        &mut self,
        definition: &Arc<For>,
        iterable: &Value,
        scope: Rc<Scope>,
        depth: usize,
    ) -> Result<Flow, Error> {
        let state = LoopState::new(definition.clone(), scope, iterable, depth)
            .map_err(|error| error.at(definition.line))?;
        let result = self.iterate(&state);
        // It may hold the loop itself.
        state.is_over.set(true);
        state.changed.take();
        if Rc::strong_count(&state) > 1 {
            self.register_scope(&state.scope);
        }
        result
    }

    fn iterate(&mut self, state: &Rc<LoopState>) -> Result<Flow, Error> {
        let definition = &state.definition;
        let name: Arc<str> = Arc::from("loop");
        // Only an iteration that ran to its end counts, as in Jinja.
        let mut has_run = false;
        while let Some(item) = state.next(self)? {
            let inner = Scope::new(Some(state.scope.clone()));
            inner.set(name.clone(), Value::object(Loop(state.clone())));
            let flow = self.in_scope(inner, |interpreter| {
                let assigned = interpreter.assign(&definition.target, item);
                assigned.map_err(|error| error.at(definition.line))?;
                interpreter.execute_all(&definition.body)
            })?;
            match flow {
                Flow::Next => has_run = true,
                Flow::Break => break,
                Flow::Continue => {}
            }
        }
        if has_run || definition.otherwise.is_empty() {
            return Ok(Flow::Next);
        }
        let scope = Scope::new(Some(state.scope.clone()));
        self.in_scope(scope, |interpreter| interpreter.execute_all(&definition.otherwise))
    }
}
