//! Expressions, from the loosest operator to the tightest.

use std::sync::Arc;

use super::super::ast::{Binary, CallArguments, Comparison, Constant, Expression};
use super::super::error::Error;
use super::super::lexer::Token;
use super::super::{filters, type_tests};
use super::tokens::{Parser, is_named};

/// Most operators of one kind in a row.
pub(super) const MAX_CHAIN: usize = 150;

impl Parser {
    pub(super) fn parse_expression(&mut self) -> Result<Expression, Error> {
        let expression = self.nested(Self::parse_conditional)?;
        self.check_height(expression)
    }

    /// `then if test else otherwise`.
    fn parse_conditional(&mut self) -> Result<Expression, Error> {
        let known = self.unknown.len();
        let mut then = self.parse_or()?;
        for length in 0..MAX_CHAIN {
            if !self.skip_name("if") {
                return self.check_chain(then, length);
            }
            let test = self.parse_or()?;
            let otherwise = if self.skip_name("else") {
                Some(Box::new(self.nested(Self::parse_conditional)?))
            } else {
                None
            };
            then = Expression::Conditional(Box::new([test, then]), otherwise);
            // A branch may never be taken.
            self.unknown.truncate(known);
        }
        self.fail("too many conditions in a row")
    }

    pub(super) fn parse_or(&mut self) -> Result<Expression, Error> {
        let mut left = self.parse_and()?;
        for length in 0..MAX_CHAIN {
            if !self.skip_name("or") {
                return self.check_chain(left, length);
            }
            left = Expression::Or(Box::new(left), Box::new(self.parse_and()?));
        }
        self.fail("too many operators in a row")
    }

    fn parse_and(&mut self) -> Result<Expression, Error> {
        let mut left = self.parse_not()?;
        for length in 0..MAX_CHAIN {
            if !self.skip_name("and") {
                return self.check_chain(left, length);
            }
            left = Expression::And(Box::new(left), Box::new(self.parse_not()?));
        }
        self.fail("too many operators in a row")
    }

    fn parse_not(&mut self) -> Result<Expression, Error> {
        if self.skip_name("not") {
            return Ok(Expression::Not(Box::new(self.nested(Self::parse_not)?)));
        }
        self.parse_compare()
    }

    fn parse_compare(&mut self) -> Result<Expression, Error> {
        let line = self.line();
        let first = self.parse_sum()?;
        let mut rest = Vec::new();
        loop {
            let comparison = match self.current() {
                Token::Operator("==") => Comparison::Equal,
                Token::Operator("!=") => Comparison::NotEqual,
                Token::Operator("<") => Comparison::Less,
                Token::Operator("<=") => Comparison::LessOrEqual,
                Token::Operator(">") => Comparison::Greater,
                Token::Operator(">=") => Comparison::GreaterOrEqual,
                token if is_named(token, "in") => Comparison::In,
                token if is_named(token, "not") && is_named(self.following(), "in") => {
                    self.advance();
                    Comparison::NotIn
                }
                _ => break,
            };
            self.advance();
            rest.push((comparison, self.parse_sum()?));
        }
        if rest.is_empty() {
            return Ok(first);
        }
        Ok(Expression::Compare(Box::new(first), rest, line))
    }

    /// Operators of one precedence, from left to right.
    fn parse_binary(
        &mut self,
        operators: &[(&str, Binary)],
        operand: fn(&mut Self) -> Result<Expression, Error>,
    ) -> Result<Expression, Error> {
        let mut left = operand(self)?;
        for length in 0..MAX_CHAIN {
            let line = self.line();
            let found = operators.iter().find(|(symbol, _)| self.is_operator(symbol));
            let Some((_, operator)) = found else { return self.check_chain(left, length) };
            self.advance();
            left = Expression::Binary(*operator, Box::new(left), Box::new(operand(self)?), line);
        }
        self.fail("too many operators in a row")
    }

    fn parse_sum(&mut self) -> Result<Expression, Error> {
        self.parse_binary(&[("+", Binary::Add), ("-", Binary::Subtract)], Self::parse_concat)
    }

    fn parse_concat(&mut self) -> Result<Expression, Error> {
        let first = self.parse_product()?;
        if !self.is_operator("~") {
            return Ok(first);
        }
        let mut parts = vec![first];
        while self.skip_operator("~") {
            parts.push(self.parse_product()?);
        }
        Ok(Expression::Concat(parts))
    }

    fn parse_product(&mut self) -> Result<Expression, Error> {
        const OPERATORS: [(&str, Binary); 4] = [
            ("*", Binary::Multiply),
            ("/", Binary::Divide),
            ("//", Binary::FloorDivide),
            ("%", Binary::Modulo),
        ];
        self.parse_binary(&OPERATORS, Self::parse_power)
    }

    fn parse_power(&mut self) -> Result<Expression, Error> {
        self.parse_binary(&[("**", Binary::Power)], |parser| parser.parse_unary(true))
    }

    fn parse_unary(&mut self, with_filters: bool) -> Result<Expression, Error> {
        let line = self.line();
        let value = if self.skip_operator("-") {
            let value = self.nested(|parser| parser.parse_unary(false))?;
            Expression::Negate(Box::new(value), line)
        } else if self.skip_operator("+") {
            let value = self.nested(|parser| parser.parse_unary(false))?;
            Expression::Plus(Box::new(value), line)
        } else {
            self.parse_primary()?
        };
        let value = self.parse_postfix(value)?;
        if with_filters { self.parse_filters(value) } else { Ok(value) }
    }

    fn parse_primary(&mut self) -> Result<Expression, Error> {
        match self.current().clone() {
            Token::Name(name) => {
                self.advance();
                Ok(self.name(name))
            }
            Token::String(first) => {
                self.advance();
                if !matches!(self.current(), Token::String(_)) {
                    return Ok(Expression::Constant(Constant::Text(first)));
                }
                let mut text = first.to_string();
                while let Token::String(more) = self.current() {
                    text.push_str(more);
                    self.advance();
                }
                Ok(Expression::Constant(Constant::Text(text.into())))
            }
            Token::Int(value) => {
                self.advance();
                Ok(Expression::Constant(Constant::Int(value)))
            }
            Token::Float(value) => {
                self.advance();
                Ok(Expression::Constant(Constant::Float(value)))
            }
            Token::Operator("(") => {
                self.advance();
                let value = self.parse_tuple(Self::parse_expression, None, true)?;
                self.expect_operator(")")?;
                Ok(value)
            }
            Token::Operator("[") => self.parse_list(),
            Token::Operator("{") => self.parse_dict(),
            _ => self.expected("an expression"),
        }
    }

    fn name(&mut self, name: Arc<str>) -> Expression {
        let constant = match &*name {
            "true" | "True" => Constant::Bool(true),
            "false" | "False" => Constant::Bool(false),
            "none" | "None" => Constant::None,
            special => {
                for uses in &mut self.macros {
                    uses.caller |= special == "caller";
                    uses.kwargs |= special == "kwargs";
                    uses.varargs |= special == "varargs";
                }
                return Expression::Name(name);
            }
        };
        Expression::Constant(constant)
    }

    /// One expression, or a tuple where commas follow.
    pub(super) fn parse_tuple(
        &mut self,
        read: fn(&mut Self) -> Result<Expression, Error>,
        end: Option<&str>,
        may_be_empty: bool,
    ) -> Result<Expression, Error> {
        let mut items = Vec::new();
        let mut is_tuple = false;
        loop {
            if !items.is_empty() {
                self.expect_operator(",")?;
            }
            let is_end =
                matches!(self.current(), Token::PrintEnd | Token::BlockEnd | Token::Operator(")"));
            if is_end || end.is_some_and(|end| self.is_name(end)) {
                break;
            }
            items.push(read(self)?);
            if !self.is_operator(",") {
                break;
            }
            is_tuple = true;
        }
        if is_tuple {
            return Ok(Expression::Tuple(items));
        }
        match items.pop() {
            Some(item) => Ok(item),
            None if may_be_empty => Ok(Expression::Tuple(items)),
            None => self.expected("an expression"),
        }
    }

    fn parse_list(&mut self) -> Result<Expression, Error> {
        self.expect_operator("[")?;
        let mut items = Vec::new();
        while !self.is_operator("]") {
            if !items.is_empty() {
                self.expect_operator(",")?;
                if self.is_operator("]") {
                    break;
                }
            }
            items.push(self.parse_expression()?);
        }
        self.expect_operator("]")?;
        Ok(Expression::List(items))
    }

    fn parse_dict(&mut self) -> Result<Expression, Error> {
        self.expect_operator("{")?;
        let mut items = Vec::new();
        while !self.is_operator("}") {
            if !items.is_empty() {
                self.expect_operator(",")?;
                if self.is_operator("}") {
                    break;
                }
            }
            let key = self.parse_expression()?;
            self.expect_operator(":")?;
            items.push((key, self.parse_expression()?));
        }
        self.expect_operator("}")?;
        Ok(Expression::Dict(items))
    }

    /// Filters, tests, and calls of what they give.
    fn parse_filters(&mut self, value: Expression) -> Result<Expression, Error> {
        let mut value = value;
        for length in 0..MAX_CHAIN {
            if self.skip_operator("|") {
                value = self.parse_filter(Some(value))?;
            } else if self.is_name("is") {
                value = self.parse_test(value)?;
            } else if self.is_operator("(") {
                value = self.parse_call(value)?;
            } else {
                return self.check_chain(value, length);
            }
        }
        self.fail("too many filters in a row")
    }

    /// One filter after its bar.
    pub(super) fn parse_filter(&mut self, value: Option<Expression>) -> Result<Expression, Error> {
        let line = self.line();
        let name = self.parse_dotted_name()?;
        if !filters::is_known(&name) {
            self.unknown.push((format!("No filter named '{name}'."), line));
        }
        let arguments =
            if self.is_operator("(") { self.parse_arguments()? } else { CallArguments::default() };
        Ok(Expression::Filter(value.map(Box::new), name, Box::new(arguments), line))
    }

    fn parse_dotted_name(&mut self) -> Result<Arc<str>, Error> {
        let first = self.expect_name()?;
        if !self.is_operator(".") {
            return Ok(first);
        }
        let mut name = first.to_string();
        while self.skip_operator(".") {
            name.push('.');
            name.push_str(&self.expect_name()?);
        }
        Ok(name.into())
    }

    fn parse_test(&mut self, value: Expression) -> Result<Expression, Error> {
        let line = self.line();
        self.advance();
        let is_negated = self.skip_name("not");
        let name = self.parse_dotted_name()?;
        if !type_tests::is_known(&name) {
            self.unknown.push((format!("No test named '{name}'."), line));
        }
        let mut arguments = CallArguments::default();
        let has_operand = match self.current() {
            Token::Name(name) => !matches!(&**name, "else" | "or" | "and"),
            Token::String(_) | Token::Int(_) | Token::Float(_) => true,
            Token::Operator(operator) => matches!(*operator, "[" | "{"),
            _ => false,
        };
        if self.is_operator("(") {
            arguments = self.parse_arguments()?;
        } else if has_operand {
            if self.is_name("is") {
                return self.fail("You cannot chain multiple tests with is");
            }
            let operand = self.parse_primary()?;
            arguments.positional.push(self.parse_postfix(operand)?);
        }
        let test = Expression::Test(Box::new(value), name, Box::new(arguments), line);
        Ok(if is_negated { Expression::Not(Box::new(test)) } else { test })
    }
}
