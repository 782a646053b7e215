//! What statements do.

use std::rc::Rc;
use std::sync::Arc;

use super::super::arguments::Arguments;
use super::super::ast::{Call, Expression, Macro, Statement, Target};
use super::super::error::Error;
use super::super::globals::Namespace;
use super::super::value::Value;
use super::super::{markup, repr};
use super::loops::Flow;
use super::scope::Scope;
use super::state::Interpreter;

impl Interpreter {
    /// Runs a template.
    pub(crate) fn run(&mut self, statements: &[Statement]) -> Result<(), Error> {
        self.execute_all(statements).map(|_flow| ())
    }

    pub(super) fn execute_all(&mut self, statements: &[Statement]) -> Result<Flow, Error> {
        for statement in statements {
            self.step()?;
            self.enter()?;
            let flow = self.execute(statement);
            self.leave();
            let flow = flow?;
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
            Statement::If(branches, otherwise) => return self.run_if(branches, otherwise),
            Statement::For(definition) => {
                let iterable = self.evaluate(&definition.iterable)?;
                return self.run_loop(definition, &iterable, self.scope.clone(), 1);
            }
            Statement::Set(target, value, line) => {
                let value = self.evaluate(value)?;
                self.assign(target, value).map_err(|error| error.at(*line))?;
            }
            Statement::SetBlock(target, filter, body, line) => {
                return self.set_block(target, filter.as_ref(), body, *line);
            }
            Statement::Filter(filter, body) => return self.write_filtered(filter, body),
            Statement::With(assignments, body) => return self.run_with(assignments, body),
            Statement::Macro(definition) => {
                let value = self.define_macro(definition);
                if let Some(name) = &definition.name {
                    self.scope.set(name.clone(), value);
                }
            }
            Statement::Call(definition, call) => self.write_call(definition, call)?,
            Statement::Generation(definition) => self.write_generation(definition)?,
            Statement::Autoescape(is_on, body) => return self.run_autoescape(is_on, body),
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

    fn run_if(
        &mut self,
        branches: &[(Expression, Vec<Statement>)],
        otherwise: &[Statement],
    ) -> Result<Flow, Error> {
        for (test, body) in branches {
            if self.evaluate(test)?.is_true() {
                return self.execute_all(body);
            }
        }
        self.execute_all(otherwise)
    }

    fn set_block(
        &mut self,
        target: &Target,
        filter: Option<&Expression>,
        body: &[Statement],
        line: usize,
    ) -> Result<Flow, Error> {
        let (written, flow) = self.write_aside(body)?;
        let value = match filter {
            Some(filter) => self.filter_block(filter, written)?,
            None => written,
        };
        self.assign(target, value).map_err(|error| error.at(line))?;
        Ok(flow)
    }

    fn write_filtered(&mut self, filter: &Expression, body: &[Statement]) -> Result<Flow, Error> {
        let (written, flow) = self.write_aside(body)?;
        let value = self.filter_block(filter, written)?;
        self.write(&repr::to_text(&value)?)?;
        Ok(flow)
    }

    fn run_with(
        &mut self,
        assignments: &[(Target, Expression)],
        body: &[Statement],
    ) -> Result<Flow, Error> {
        let scope = self.inner_scope();
        for (target, value) in assignments {
            let value = self.evaluate(value)?;
            self.in_scope(scope.clone(), |this| this.assign(target, value))?;
        }
        self.in_scope(scope, |this| this.execute_all(body))
    }

    fn write_call(&mut self, definition: &Arc<Macro>, call: &Call) -> Result<(), Error> {
        let caller = self.define_macro(definition);
        let value = self.evaluate_call(call, Some(caller))?;
        self.write_value(&value)
    }

    fn write_generation(&mut self, definition: &Arc<Macro>) -> Result<(), Error> {
        let body = self.define_macro(definition);
        let written = self.call(&body, Arguments::default())?;
        self.write_value(&written)
    }

    fn run_autoescape(&mut self, is_on: &Expression, body: &[Statement]) -> Result<Flow, Error> {
        let is_on = self.evaluate(is_on)?.is_true();
        let outer = std::mem::replace(&mut self.escapes, is_on);
        let scope = self.inner_scope();
        let result = self.in_scope(scope, |this| this.execute_all(body));
        self.escapes = outer;
        result
    }

    fn print(&mut self, expression: &Expression) -> Result<(), Error> {
        let value = self.evaluate(expression)?;
        self.write_value(&value)
    }

    /// Writes a value as `str()` has it.
    fn write_value(&mut self, value: &Value) -> Result<(), Error> {
        if self.escapes {
            return self.write(&markup::escaped(value)?);
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
