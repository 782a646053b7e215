//! What expressions are worth.

use std::collections::HashSet;
use std::rc::Rc;
use std::sync::Arc;

use super::super::arguments::Arguments;
use super::super::ast::{Binary, Call, CallArguments, Comparison, Constant, Expression};
use super::super::budget::check_text_bytes;
use super::super::dict::{Dict, Key};
use super::super::error::Error;
use super::super::runtime::Runtime;
use super::super::slice::Slice;
use super::super::value::Value;
use super::super::{budget, filters, markup, operators, repr, subscripts, type_tests};
use super::loops::Loop;
use super::state::Interpreter;

impl Interpreter {
    /// The value of an expression.
    pub(super) fn evaluate(&mut self, expression: &Expression) -> Result<Value, Error> {
        match expression {
            Expression::Constant(constant) => Ok(of_constant(constant)),
            Expression::Name(name) => Ok(self
                .scope
                .get(name)
                .unwrap_or_else(|| Value::undefined(format!("'{name}' is undefined")))),
            other => {
                self.step()?;
                self.enter()?;
                let value = self.evaluate_inner(other);
                self.leave();
                value
            }
        }
    }

    /// Each kind has a method of its own, so that nested ones need little of the stack.
    fn evaluate_inner(&mut self, expression: &Expression) -> Result<Value, Error> {
        match expression {
            Expression::Constant(_) | Expression::Name(_) => self.evaluate(expression),
            Expression::List(items) => self.evaluate_all(items).map(Value::list),
            Expression::Tuple(items) => self.evaluate_all(items).map(Value::tuple),
            Expression::Dict(items) => self.evaluate_dict(items),
            Expression::Attribute(value, name, line) => self.evaluate_attribute(value, name, *line),
            Expression::Item(value, key, line) => self.evaluate_item(value, key, *line),
            Expression::Slice(value, borders, line) => self.evaluate_slice(value, borders, *line),
            Expression::Call(call) => self.evaluate_call(call, None),
            Expression::Filter(value, name, arguments, line) => {
                self.evaluate_filtered(value.as_deref(), name, arguments, *line)
            }
            Expression::Test(value, name, arguments, line) => {
                self.evaluate_test(value, name, arguments, *line)
            }
            Expression::Binary(operator, left, right, line) => {
                self.evaluate_binary(*operator, left, right, *line)
            }
            Expression::Concat(parts) => self.evaluate_concat(parts),
            Expression::Negate(value, line) => self.evaluate_unary(operators::negate, value, *line),
            Expression::Plus(value, line) => self.evaluate_unary(operators::plus, value, *line),
            Expression::Not(value) => self.evaluate_not(value),
            Expression::And(left, right) => self.evaluate_either(left, right, false),
            Expression::Or(left, right) => self.evaluate_either(left, right, true),
            Expression::Compare(first, rest, line) => self.evaluate_compare(first, rest, *line),
            Expression::Conditional(both, otherwise) => {
                self.evaluate_conditional(both, otherwise.as_deref())
            }
        }
    }

    fn evaluate_attribute(
        &mut self,
        value: &Expression,
        name: &str,
        line: usize,
    ) -> Result<Value, Error> {
        let value = self.evaluate(value)?;
        self.look_ahead(&value, name)?;
        subscripts::attribute(&value, name).map_err(|error| error.at(line))
    }

    fn evaluate_item(
        &mut self,
        value: &Expression,
        key: &Expression,
        line: usize,
    ) -> Result<Value, Error> {
        let value = self.evaluate(value)?;
        let key = self.evaluate(key)?;
        if let Some(name) = key.as_text() {
            self.look_ahead(&value, name)?;
        }
        subscripts::item(&value, &key).map_err(|error| error.at(line))
    }

    fn evaluate_slice(
        &mut self,
        sliced: &Expression,
        borders: &[Option<Expression>; 3],
        line: usize,
    ) -> Result<Value, Error> {
        let value = self.evaluate(sliced)?;
        let mut border = |border: &Option<Expression>| match border {
            Some(border) => self.evaluate(border),
            None => Ok(Value::None),
        };
        let [start, stop, step] = borders;
        let (start, stop, step) = (border(start)?, border(stop)?, border(step)?);
        let part = match Slice::new(&start, &stop, &step) {
            Some(slice) => subscripts::slice(&value, &slice).map_err(|error| error.at(line))?,
            None => None,
        };
        match part {
            Some(part) => Ok(part),
            // Jinja computes beforehand what the template itself says, and forgives it.
            None if is_known_beforehand(sliced) => {
                Ok(subscripts::missing(&value, &Value::from("slice")))
            }
            None => {
                let kind = value.type_name();
                Err(Error::new(format!("'{kind}' object cannot be sliced so")).at(line))
            }
        }
    }

    fn evaluate_filtered(
        &mut self,
        value: Option<&Expression>,
        name: &str,
        arguments: &CallArguments,
        line: usize,
    ) -> Result<Value, Error> {
        let value = match value {
            Some(value) => self.evaluate(value)?,
            None => Value::from(""),
        };
        self.evaluate_filter(name, value, arguments, line)
    }

    fn evaluate_test(
        &mut self,
        value: &Expression,
        name: &str,
        arguments: &CallArguments,
        line: usize,
    ) -> Result<Value, Error> {
        let value = self.evaluate(value)?;
        let arguments = self.evaluate_arguments(arguments)?;
        let result = type_tests::apply(name, &value, arguments);
        result.map(Value::Bool).map_err(|error| error.at(line))
    }

    fn evaluate_binary(
        &mut self,
        operator: Binary,
        left: &Expression,
        right: &Expression,
        line: usize,
    ) -> Result<Value, Error> {
        let left = self.evaluate(left)?;
        let right = self.evaluate(right)?;
        operators::binary(operator, &left, &right).map_err(|error| error.at(line))
    }

    fn evaluate_unary(
        &mut self,
        operator: fn(&Value) -> Result<Value, Error>,
        value: &Expression,
        line: usize,
    ) -> Result<Value, Error> {
        let value = self.evaluate(value)?;
        operator(&value).map_err(|error| error.at(line))
    }

    fn evaluate_not(&mut self, value: &Expression) -> Result<Value, Error> {
        Ok(Value::Bool(!self.evaluate(value)?.is_true()))
    }

    /// `and` and `or`: the left value, where it decides.
    fn evaluate_either(
        &mut self,
        left: &Expression,
        right: &Expression,
        decides: bool,
    ) -> Result<Value, Error> {
        let left = self.evaluate(left)?;
        if left.is_true() == decides { Ok(left) } else { self.evaluate(right) }
    }

    fn evaluate_compare(
        &mut self,
        first: &Expression,
        rest: &[(Comparison, Expression)],
        line: usize,
    ) -> Result<Value, Error> {
        let mut left = self.evaluate(first)?;
        for (comparison, right) in rest {
            let right = self.evaluate(right)?;
            let holds = operators::compare(*comparison, &left, &right);
            if !holds.map_err(|error| error.at(line))? {
                return Ok(Value::Bool(false));
            }
            left = right;
        }
        Ok(Value::Bool(true))
    }

    fn evaluate_conditional(
        &mut self,
        [test, then]: &[Expression; 2],
        otherwise: Option<&Expression>,
    ) -> Result<Value, Error> {
        if self.evaluate(test)?.is_true() {
            return self.evaluate(then);
        }
        match otherwise {
            Some(otherwise) => self.evaluate(otherwise),
            None => Ok(Value::undefined(
                "the inline if-expression evaluated to false and no else section was defined.",
            )),
        }
    }

    fn evaluate_all(&mut self, items: &[Expression]) -> Result<Vec<Value>, Error> {
        items.iter().map(|item| self.evaluate(item)).collect()
    }

    fn evaluate_dict(&mut self, items: &[(Expression, Expression)]) -> Result<Value, Error> {
        let mut dict = Dict::with_capacity(items.len());
        for (key, value) in items {
            let key = Key::new(self.evaluate(key)?)?;
            dict.insert(key, self.evaluate(value)?);
        }
        Ok(Value::dict(dict))
    }

    /// Attributes of a loop may tell of items that have not had their turn.
    fn look_ahead(&mut self, value: &Value, name: &str) -> Result<(), Error> {
        match value.downcast::<Loop>() {
            Some(found) => {
                let state = Rc::clone(&found.0);
                state.look_ahead(self, name)
            }
            None => Ok(()),
        }
    }

    fn evaluate_concat(&mut self, parts: &[Expression]) -> Result<Value, Error> {
        let values = self.evaluate_all(parts)?;
        let is_markup =
            self.escapes && values.iter().any(|value| matches!(value, Value::Markup(_)));
        let mut out = String::new();
        for value in &values {
            if is_markup {
                out.push_str(&markup::escaped(value)?);
            } else {
                out.push_str(&repr::to_text(value)?);
            }
            check_text_bytes(out.len())?;
        }
        budget::charge_text(out.len())?;
        Ok(if is_markup { Value::Markup(out.into()) } else { out.into() })
    }

    /// A call, with the body of a `{% call %}` as one more argument.
    pub(super) fn evaluate_call(
        &mut self,
        call: &Call,
        caller: Option<Value>,
    ) -> Result<Value, Error> {
        let Call { callee, arguments, line } = call;
        let callee = self.evaluate(callee)?;
        let mut arguments = self.evaluate_arguments(arguments)?;
        if let Some(caller) = caller {
            arguments.keywords.push((Arc::from("caller"), caller));
        }
        self.call(&callee, arguments).map_err(|error| error.at(*line))
    }

    fn evaluate_arguments(&mut self, arguments: &CallArguments) -> Result<Arguments, Error> {
        let mut positional = self.evaluate_all(&arguments.positional)?;
        let mut keywords = Vec::with_capacity(arguments.keywords.len());
        for (name, value) in &arguments.keywords {
            keywords.push((name.clone(), self.evaluate(value)?));
        }
        if let Some(more) = &arguments.more_positional {
            self.add_positional(more, &mut positional)?;
        }
        if let Some(more) = &arguments.more_keywords {
            self.add_keywords(more, &mut keywords)?;
        }
        Ok(Arguments { positional, keywords })
    }

    /// `*values`.
    fn add_positional(
        &mut self,
        more: &Expression,
        positional: &mut Vec<Value>,
    ) -> Result<(), Error> {
        let more = self.evaluate(more)?.to_vec()?;
        check_count(positional.len() + more.len())?;
        positional.extend(more);
        Ok(())
    }

    /// `**values`.
    fn add_keywords(
        &mut self,
        more: &Expression,
        keywords: &mut Vec<(Arc<str>, Value)>,
    ) -> Result<(), Error> {
        let more = self.evaluate(more)?;
        let Value::Dict(dict) = &more else {
            return Err(Error::new("argument after ** must be a mapping"));
        };
        check_count(keywords.len() + dict.len())?;
        let written: HashSet<Arc<str>> = keywords.iter().map(|(name, _)| name.clone()).collect();
        for (name, value) in dict.iter() {
            let name = name.as_text().ok_or_else(|| Error::new("keywords must be strings"))?;
            budget::charge_text(name.len())?;
            if written.contains(name) {
                let message = format!("got multiple values for keyword argument '{name}'");
                return Err(Error::new(message));
            }
            keywords.push((Arc::from(name), value.clone()));
        }
        Ok(())
    }

    fn evaluate_filter(
        &mut self,
        name: &str,
        value: Value,
        arguments: &CallArguments,
        line: usize,
    ) -> Result<Value, Error> {
        let arguments = self.evaluate_arguments(arguments)?;
        filters::apply(self, name, value, arguments).map_err(|error| error.at(line))
    }

    /// The filters of a block, applied to what it wrote.
    pub(super) fn filter_block(
        &mut self,
        filter: &Expression,
        written: Value,
    ) -> Result<Value, Error> {
        let Expression::Filter(inner, name, arguments, line) = filter else {
            return Err(Error::new("expected a filter"));
        };
        let value = match inner {
            Some(inner) => self.filter_block(inner, written)?,
            None => written,
        };
        self.evaluate_filter(name, value, arguments, *line)
    }
}

/// Most arguments of a call.
const MAX_ARGUMENTS: usize = 1 << 16;

fn check_count(arguments: usize) -> Result<(), Error> {
    if arguments <= MAX_ARGUMENTS {
        return Ok(());
    }
    Err(Error::limit(format!("the template makes a call with more than {MAX_ARGUMENTS} arguments")))
}

/// Whether a value is known before the template renders, since it depends on no variable.
fn is_known_beforehand(expression: &Expression) -> bool {
    let is_known = is_known_beforehand;
    match expression {
        Expression::Constant(_) => true,
        Expression::List(items) | Expression::Tuple(items) | Expression::Concat(items) => {
            items.iter().all(is_known)
        }
        Expression::Dict(items) => {
            items.iter().all(|(key, value)| is_known(key) && is_known(value))
        }
        Expression::Negate(value, _) | Expression::Plus(value, _) | Expression::Not(value) => {
            is_known(value)
        }
        Expression::Binary(_, left, right, _)
        | Expression::And(left, right)
        | Expression::Or(left, right) => is_known(left) && is_known(right),
        Expression::Compare(first, rest, _) => {
            is_known(first) && rest.iter().all(|(_, value)| is_known(value))
        }
        Expression::Test(value, _, arguments, _) => {
            is_known(value) && arguments.positional.iter().all(is_known)
        }
        Expression::Filter(Some(value), name, arguments, _) => {
            let applies_others = matches!(
                &**name,
                "map" | "select" | "reject" | "selectattr" | "rejectattr" | "random"
            );
            !applies_others && is_known(value) && arguments.positional.iter().all(is_known)
        }
        _ => false,
    }
}

fn of_constant(constant: &Constant) -> Value {
    match constant {
        Constant::None => Value::None,
        Constant::Bool(value) => Value::Bool(*value),
        Constant::Int(value) => Value::Int(value.clone()),
        Constant::Float(value) => Value::Float(*value),
        Constant::Text(text) => Value::from(text.clone()),
    }
}

impl Runtime for Interpreter {
    fn apply_filter(
        &mut self,
        name: &str,
        value: Value,
        arguments: Arguments,
    ) -> Result<Value, Error> {
        self.step()?;
        self.nested(|interpreter| filters::apply(interpreter, name, value, arguments))
    }

    fn apply_test(
        &mut self,
        name: &str,
        value: Value,
        arguments: Arguments,
    ) -> Result<bool, Error> {
        self.step()?;
        type_tests::apply(name, &value, arguments)
    }

    fn escapes(&self) -> bool {
        self.escapes
    }
}
