//! Which names a template reads without having set them: what it asks of whoever renders it.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::ast::{CallArguments, Expression, Macro, Statement, Target};

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
    set: BTreeSet<Arc<str>>,
}

impl Finder {
    /// Runs something whose names are gone behind it.
    fn scoped(&mut self, run: impl FnOnce(&mut Self)) {
        let outer = self.set.clone();
        run(self);
        self.set = outer;
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
                    finder.set.insert(Arc::from("loop"));
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
                self.set.extend(definition.name.clone());
                self.body_of(definition);
            }
            Statement::Call(definition, call) => {
                self.body_of(definition);
                self.expression(call);
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
        let before = self.set.clone();
        let mut common: Option<BTreeSet<Arc<str>>> = None;
        for (test, body) in branches {
            self.expression(test);
            self.statements(body);
            let after = std::mem::replace(&mut self.set, before.clone());
            common = Some(match common {
                Some(common) => common.intersection(&after).cloned().collect(),
                None => after,
            });
        }
        self.statements(otherwise);
        if let Some(common) = common {
            self.set.retain(|name| common.contains(name));
        }
    }

    /// What a macro or the body of a call reads.
    fn body_of(&mut self, definition: &Macro) {
        self.scoped(|finder| {
            let special = ["caller", "kwargs", "varargs"].map(Arc::from);
            finder.set.extend(special);
            for (name, default) in &definition.parameters {
                finder.optional(default.as_ref());
                finder.set.insert(name.clone());
            }
            finder.statements(&definition.body);
        });
    }

    fn target(&mut self, target: &Target) {
        match target {
            Target::Name(name) => {
                self.set.insert(name.clone());
            }
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
            Expression::Call(call) => {
                self.expression(&call.callee);
                self.arguments(&call.arguments);
            }
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

    fn arguments(&mut self, arguments: &CallArguments) {
        self.expressions(&arguments.positional);
        arguments.keywords.iter().for_each(|(_, value)| self.expression(value));
        self.optional(arguments.more_positional.as_ref());
        self.optional(arguments.more_keywords.as_ref());
    }
}
