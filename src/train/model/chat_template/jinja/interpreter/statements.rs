//! What statements do.

use std::rc::Rc;

use super::super::ast::{Expression, Statement, Target};
use super::super::error::Error;
use super::super::globals::Namespace;
use super::super::value::Value;
use super::super::{operators, repr};
use super::loops::Flow;
use super::scope::Scope;
use super::state::Interpreter;

/// How deep lists may be nested that a variable holds.
const MAX_NESTED_LISTS: usize = 200;

impl Interpreter {
    /// Runs a template.
    pub(crate) fn run(&mut self, statements: &[Statement]) -> Result<(), Error> {
        self.execute_all(statements).map(|_flow| ())
    }

    pub(super) fn execute_all(&mut self, statements: &[Statement]) -> Result<Flow, Error> {
        for statement in statements {
            self.step()?;
            let flow = self.nested(|interpreter| interpreter.execute(statement))?;
            if flow != Flow::Next {
                return Ok(flow);
            }
        }
        Ok(Flow::Next)
    }

    fn execute(&mut self, statement: &Statement) -> Result<Flow, Error> {
        match statement {
            Statement::Text(text) => self.write(text)?,
            Statement::Print(expression) => self.print(expression)?,
            Statement::If(branches, otherwise) => {
                for (test, body) in branches {
                    if self.evaluate(test)?.is_true() {
                        return self.execute_all(body);
                    }
                }
                return self.execute_all(otherwise);
            }
            Statement::For(definition) => {
                let iterable = self.evaluate(&definition.iterable)?;
                return self.run_loop(definition, &iterable, self.scope.clone(), 1);
            }
            Statement::Set(target, value, line) => {
                let value = self.evaluate(value)?;
                self.assign(target, value).map_err(|error| error.at(*line))?;
            }
            Statement::SetBlock(target, filter, body, line) => {
                let (written, flow) = self.write_aside(body)?;
                let value = match filter {
                    Some(filter) => self.filter_block(filter, written)?,
                    None => written,
                };
                self.assign(target, value).map_err(|error| error.at(*line))?;
                return Ok(flow);
            }
            Statement::Filter(filter, body) => {
                let (written, flow) = self.write_aside(body)?;
                let value = self.filter_block(filter, written)?;
                self.write(&repr::to_text(&value)?)?;
                return Ok(flow);
            }
            Statement::With(assignments, body) => {
                let scope = self.inner_scope();
                for (target, value) in assignments {
                    let value = self.evaluate(value)?;
                    self.in_scope(scope.clone(), |this| this.assign(target, value))?;
                }
                return self.in_scope(scope, |this| this.execute_all(body));
            }
            Statement::Macro(definition) => {
                let value = self.define_macro(definition);
                if let Some(name) = &definition.name {
                    self.scope.set(name.clone(), value);
                }
            }
            Statement::Call(definition, call) => {
                let caller = self.define_macro(definition);
                let value = self.evaluate_call(call, Some(caller))?;
                self.write_value(&value)?;
            }
            Statement::Generation(definition) => {
                let body = self.define_macro(definition);
                let written = self.call(&body, super::super::value::Arguments::default())?;
                self.write_value(&written)?;
            }
            Statement::Autoescape(is_on, body) => {
                let is_on = self.evaluate(is_on)?.is_true();
                let outer = std::mem::replace(&mut self.escapes, is_on);
                let scope = self.inner_scope();
                let result = self.in_scope(scope, |this| this.execute_all(body));
                self.escapes = outer;
                return result;
            }
            Statement::Block(body) => {
                let scope = Scope::new(Some(self.root.clone()));
                self.in_scope(scope, |this| this.execute_all(body))?;
            }
            Statement::Break => return Ok(Flow::Break),
            Statement::Continue => return Ok(Flow::Continue),
            Statement::Fail(message, line) => return Err(Error::new(message).at(*line)),
        }
        Ok(Flow::Next)
    }

    fn print(&mut self, expression: &Expression) -> Result<(), Error> {
        let value = self.evaluate(expression)?;
        self.write_value(&value)
    }

    /// Writes a value as `str()` has it.
    fn write_value(&mut self, value: &Value) -> Result<(), Error> {
        if self.escapes {
            return self.write(&operators::escape(value)?);
        }
        self.write(&repr::to_text(value)?)
    }

    /// What a body writes in a scope of its own, and how it ended.
    fn write_aside(&mut self, body: &[Statement]) -> Result<(Value, Flow), Error> {
        let scope = self.inner_scope();
        let mut flow = Flow::Next;
        let written = self.in_scope(scope, |this| {
            this.capture(|this| {
                flow = this.execute_all(body)?;
                Ok(())
            })
        })?;
        Ok((written, flow))
    }

    /// Assigns a value to names, or to an attribute of a namespace.
    pub(super) fn assign(&mut self, target: &Target, value: Value) -> Result<(), Error> {
        if value.is_deeper_than(MAX_NESTED_LISTS) {
            return Err(Error::new("the template nests lists too deeply"));
        }
        match target {
            Target::Name(name) => self.scope.set(name.clone(), value),
            Target::Tuple(targets) => {
                let values = value.to_vec()?;
                if values.len() != targets.len() {
                    let problem =
                        if values.len() < targets.len() { "not enough" } else { "too many" };
                    return Err(Error::new(format!(
                        "{problem} values to unpack (expected {}, got {})",
                        targets.len(),
                        values.len()
                    )));
                }
                for (target, value) in targets.iter().zip(values) {
                    self.assign(target, value)?;
                }
            }
            Target::Namespace(name, attribute) => {
                let holder = self.scope.get(name);
                let Some(Value::Object(object)) = &holder else { return Err(no_namespace()) };
                let Some(namespace) = object.as_any().downcast_ref::<Namespace>() else {
                    return Err(no_namespace());
                };
                namespace.set(attribute, value)?;
                self.register_namespace(&Rc::clone(object), namespace);
            }
        }
        Ok(())
    }
}

fn no_namespace() -> Error {
    Error::new("cannot assign attribute on non-namespace object")
}
