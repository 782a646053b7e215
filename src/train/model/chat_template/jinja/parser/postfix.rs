//! What stands behind an expression: attributes, items, slices and calls.

use std::collections::HashSet;

use super::super::ast::{Call, CallArguments, Constant, Expression};
use super::super::error::Error;
use super::super::lexer::Token;
use super::expressions::MAX_CHAIN;
use super::tokens::Parser;

impl Parser {
    /// Attributes, items and calls.
    pub(super) fn parse_postfix(&mut self, value: Expression) -> Result<Expression, Error> {
        let mut value = value;
        for length in 0..MAX_CHAIN {
            let line = self.line();
            if self.skip_operator(".") {
                value = match self.advance() {
                    Token::Name(name) => Expression::Attribute(Box::new(value), name, line),
                    Token::Int(index) => {
                        let index = Expression::Constant(Constant::Int(index));
                        Expression::Item(Box::new(value), Box::new(index), line)
                    }
                    _ => return Err(Error::new("expected a name or a number").at(line)),
                };
            } else if self.skip_operator("[") {
                value = self.parse_subscript(value, line)?;
                self.expect_operator("]")?;
            } else if self.is_operator("(") {
                value = self.parse_call(value)?;
            } else {
                return self.check_chain(value, length);
            }
        }
        self.fail("too many subscripts in a row")
    }

    fn parse_subscript(&mut self, value: Expression, line: usize) -> Result<Expression, Error> {
        let mut start = None;
        if !self.is_operator(":") {
            let key = self.parse_tuple_of_keys()?;
            if !self.is_operator(":") {
                return Ok(Expression::Item(Box::new(value), Box::new(key), line));
            }
            start = Some(key);
        }
        self.expect_operator(":")?;
        let is_end = |parser: &Self| parser.is_operator("]") || parser.is_operator(":");
        let stop = if is_end(self) { None } else { Some(self.parse_expression()?) };
        let step = match self.skip_operator(":") && !is_end(self) {
            true => Some(self.parse_expression()?),
            false => None,
        };
        Ok(Expression::Slice(Box::new(value), Box::new([start, stop, step]), line))
    }

    fn parse_tuple_of_keys(&mut self) -> Result<Expression, Error> {
        let first = self.parse_expression()?;
        if !self.is_operator(",") {
            return Ok(first);
        }
        let mut keys = vec![first];
        while self.skip_operator(",") {
            if self.is_operator("]") {
                break;
            }
            keys.push(self.parse_expression()?);
        }
        Ok(Expression::Tuple(keys))
    }

    pub(super) fn parse_call(&mut self, callee: Expression) -> Result<Expression, Error> {
        let line = self.line();
        let arguments = self.parse_arguments()?;
        Ok(Expression::Call(Box::new(Call { callee, arguments, line })))
    }

    pub(super) fn parse_arguments(&mut self) -> Result<CallArguments, Error> {
        self.expect_operator("(")?;
        let mut arguments = CallArguments::default();
        let mut keywords = HashSet::new();
        let mut is_first = true;
        while !self.is_operator(")") {
            if !is_first {
                self.expect_operator(",")?;
                if self.is_operator(")") {
                    break;
                }
            }
            is_first = false;
            let has_more = arguments.more_positional.is_some() || arguments.more_keywords.is_some();
            if !has_more && self.skip_operator("*") {
                arguments.more_positional = Some(self.parse_expression()?);
            } else if arguments.more_keywords.is_none() && self.skip_operator("**") {
                arguments.more_keywords = Some(self.parse_expression()?);
            } else if let (Token::Name(name), Token::Operator("="), None) =
                (self.current().clone(), self.following(), &arguments.more_keywords)
            {
                self.advance();
                self.advance();
                if !keywords.insert(name.clone()) {
                    return self.fail(format!("keyword argument repeated: {name}"));
                }
                arguments.keywords.push((name, self.parse_expression()?));
            } else if !has_more && arguments.keywords.is_empty() {
                arguments.positional.push(self.parse_expression()?);
            } else {
                return self.fail("invalid syntax for function call expression");
            }
        }
        self.expect_operator(")")?;
        Ok(arguments)
    }
}
