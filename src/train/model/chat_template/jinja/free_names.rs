//! Which names a template reads without having set them: what it asks of whoever renders it.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use super::ast::{Call, CallArguments, Expression, Macro, Statement, Target};

/// The names that statements read and have not set before, wherever they run.
pub(super) fn of(statements: &[Statement]) -> BTreeSet<String> {
    let mut finder = Finder::default();
    finder.statements(statements);
    finder.free
}

#[derive(Default)]
struct Finder {
    free: BTreeSet<String>,
    /// The names that are set for certain at the current place.
    set: HashSet<Arc<str>>,
    /// The same names in the order in which they were set, so that those of a block can be taken back.
    order: Vec<Arc<str>>,
}

impl Finder {
    /// Runs something whose names are gone behind it.
    fn scoped(&mut self, run: impl FnOnce(&mut Self)) {
        let outer = self.order.len();
        run(self);
        self.take_back(outer);
    }

    /// Takes back the names that were set since there were so many.
    fn take_back(&mut self, count: usize) -> Vec<Arc<str>> {
        let names = self.order.split_off(count);
        names.iter().for_each(|name| {
            self.set.remove(name);
        });
        names
    }

    fn set(&mut self, name: &Arc<str>) {
        if self.set.insert(name.clone()) {
            self.order.push(name.clone());
        }
    }

    fn statements(&mut self, statements: &[Statement]) {
        statements.iter().for_each(|statement| self.statement(statement));
    }

    fn statement(&mut self, statement: &Statement) {
        match statement {
            Statement::Text(_) | Statement::Break | Statement::Continue | Statement::Fail(_, _) => {
            }
            Statement::Print(value) => self.expression(value),
            Statement::If(branches, otherwise) => self.branches(branches, otherwise),
            Statement::For(definition) => {
                self.expression(&definition.iterable);
                self.scoped(|finder| {
                    finder.target(&definition.target);
                    finder.optional(definition.condition.as_ref());
                    finder.set(&Arc::from("loop"));
                    finder.statements(&definition.body);
                });
                self.scoped(|finder| finder.statements(&definition.otherwise));
            }
            Statement::Set(target, value, _) => {
                self.expression(value);
                self.target(target);
            }
            Statement::SetBlock(target, filter, body, _) => {
                self.scoped(|finder| finder.statements(body));
                self.optional(filter.as_ref());
                self.target(target);
            }
            Statement::With(assignments, body) => {
                assignments.iter().for_each(|(_, value)| self.expression(value));
                self.scoped(|finder| {
                    assignments.iter().for_each(|(target, _)| finder.target(target));
                    finder.statements(body);
                });
            }
            Statement::Macro(definition) => {
                definition.name.iter().for_each(|name| self.set(name));
                self.body_of(definition);
            }
            Statement::Call(definition, call) => {
                self.body_of(definition);
                self.call(call);
            }
            Statement::Generation(definition) => self.body_of(definition),
            Statement::Filter(value, body) | Statement::Autoescape(value, body) => {
                self.expression(value);
                self.scoped(|finder| finder.statements(body));
            }
            Statement::Block(body) => self.scoped(|finder| finder.statements(body)),
        }
    }

    /// Behind the branches those names are set that every branch sets.
    fn branches(&mut self, branches: &[(Expression, Vec<Statement>)], otherwise: &[Statement]) {
        let before = self.order.len();
        // In how many branches a name is set.
        let mut counts: HashMap<Arc<str>, usize> = HashMap::new();
        for (test, body) in branches {
            self.expression(test);
            self.statements(body);
            for name in self.take_back(before) {
                *counts.entry(name).or_default() += 1;
            }
        }
        self.statements(otherwise);
        for name in self.take_back(before) {
            if counts.get(&name) == Some(&branches.len()) {
                self.set(&name);
            }
        }
    }

    /// What a macro or the body of a call reads.
    fn body_of(&mut self, definition: &Macro) {
        self.scoped(|finder| {
            ["caller", "kwargs", "varargs"].map(Arc::from).iter().for_each(|name| finder.set(name));
            for (name, default) in &definition.parameters {
                finder.optional(default.as_ref());
                finder.set(name);
            }
            finder.statements(&definition.body);
        });
    }

    fn target(&mut self, target: &Target) {
        match target {
            Target::Name(name) => self.set(name),
            Target::Tuple(targets) => targets.iter().for_each(|target| self.target(target)),
            Target::Namespace(name, _) => self.name(name),
        }
    }

    fn name(&mut self, name: &Arc<str>) {
        if !self.set.contains(name) {
            self.free.insert(name.to_string());
        }
    }

    fn optional(&mut self, value: Option<&Expression>) {
        if let Some(value) = value {
            self.expression(value);
        }
    }

    fn expressions(&mut self, values: &[Expression]) {
        values.iter().for_each(|value| self.expression(value));
    }

    fn expression(&mut self, value: &Expression) {
        match value {
            Expression::Constant(_) => {}
            Expression::Name(name) => self.name(name),
            Expression::List(items) | Expression::Tuple(items) | Expression::Concat(items) => {
                self.expressions(items);
            }
            Expression::Dict(items) => {
                for (key, value) in items {
                    self.expression(key);
                    self.expression(value);
                }
            }
            Expression::Attribute(value, _, _)
            | Expression::Negate(value, _)
            | Expression::Plus(value, _)
            | Expression::Not(value) => self.expression(value),
            Expression::Item(a, b, _)
            | Expression::Binary(_, a, b, _)
            | Expression::And(a, b)
            | Expression::Or(a, b) => {
                self.expression(a);
                self.expression(b);
            }
            Expression::Slice(value, bounds, _) => {
                self.expression(value);
                bounds.iter().for_each(|bound| self.optional(bound.as_ref()));
            }
            Expression::Call(call) => self.call(call),
            Expression::Filter(value, _, arguments, _) => {
                self.optional(value.as_deref());
                self.arguments(arguments);
            }
            Expression::Test(value, _, arguments, _) => {
                self.expression(value);
                self.arguments(arguments);
            }
            Expression::Compare(first, others, _) => {
                self.expression(first);
                others.iter().for_each(|(_, other)| self.expression(other));
            }
            Expression::Conditional(both, otherwise) => {
                self.expressions(&both[..]);
                self.optional(otherwise.as_deref());
            }
        }
    }

    fn call(&mut self, call: &Call) {
        self.expression(&call.callee);
        self.arguments(&call.arguments);
    }

    fn arguments(&mut self, arguments: &CallArguments) {
        self.expressions(&arguments.positional);
        arguments.keywords.iter().for_each(|(_, value)| self.expression(value));
        self.optional(arguments.more_positional.as_ref());
        self.optional(arguments.more_keywords.as_ref());
    }
}
