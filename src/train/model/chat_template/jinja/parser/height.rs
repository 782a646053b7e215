//! How deep the expressions of a template are nested in each other.

use super::super::ast::{CallArguments, Expression, MAX_DEPTH};
use super::super::error::Error;
use super::tokens::Parser;

/// Operators in a row from which on their height is looked at where they end.
const LONG_CHAIN: usize = 16;

impl Parser {
    /// Refuses an expression that could not be evaluated.
    pub(super) fn check_height(&self, expression: Expression) -> Result<Expression, Error> {
        if is_higher_than(&expression, MAX_DEPTH) {
            return self.fail("the template is nested too deeply");
        }
        Ok(expression)
    }

    /// Refuses a row of so many operators that could not be evaluated.
    pub(super) fn check_chain(
        &self,
        expression: Expression,
        operators: usize,
    ) -> Result<Expression, Error> {
        if operators < LONG_CHAIN { Ok(expression) } else { self.check_height(expression) }
    }
}

/// Whether an expression has more levels than `limit`; what lies deeper is not looked at.
fn is_higher_than(expression: &Expression, limit: usize) -> bool {
    let Some(inner) = limit.checked_sub(1) else { return true };
    let is_high = |inside: &Expression| is_higher_than(inside, inner);
    let are_high = |all: &[Expression]| all.iter().any(is_high);
    let is_given_high = |given: Option<&Expression>| given.is_some_and(is_high);
    let arguments_are_high = |arguments: &CallArguments| {
        are_high(&arguments.positional)
            || arguments.keywords.iter().any(|(_, value)| is_high(value))
            || is_given_high(arguments.more_positional.as_ref())
            || is_given_high(arguments.more_keywords.as_ref())
    };
    match expression {
        Expression::Constant(_) | Expression::Name(_) => false,
        Expression::List(items) | Expression::Tuple(items) | Expression::Concat(items) => {
            are_high(items)
        }
        Expression::Dict(items) => items.iter().any(|(key, value)| is_high(key) || is_high(value)),
        Expression::Attribute(value, _, _)
        | Expression::Negate(value, _)
        | Expression::Plus(value, _)
        | Expression::Not(value) => is_high(value),
        Expression::Item(a, b, _)
        | Expression::Binary(_, a, b, _)
        | Expression::And(a, b)
        | Expression::Or(a, b) => is_high(a) || is_high(b),
        Expression::Slice(value, borders, _) => {
            is_high(value) || borders.iter().flatten().any(is_high)
        }
        Expression::Call(call) => is_high(&call.callee) || arguments_are_high(&call.arguments),
        Expression::Filter(value, _, arguments, _) => {
            is_given_high(value.as_deref()) || arguments_are_high(arguments)
        }
        Expression::Test(value, _, arguments, _) => is_high(value) || arguments_are_high(arguments),
        Expression::Compare(first, rest, _) => {
            is_high(first) || rest.iter().any(|(_, value)| is_high(value))
        }
        Expression::Conditional(both, otherwise) => {
            are_high(&both[..]) || is_given_high(otherwise.as_deref())
        }
    }
}
