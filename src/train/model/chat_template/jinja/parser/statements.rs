//! Statements: what stands between `{%` and `%}`, and the blocks that they open.

use std::collections::HashSet;
use std::sync::Arc;

use super::super::ast::{Expression, For, Macro, Parameters, SpecialNames, Statement, Target};
use super::super::error::Error;
use super::super::lexer::{Token, tokenize};
use super::tokens::{Parser, is_named};

/// Reads a template.
///
/// # Errors
/// What is no Jinja, with the line.
pub(crate) fn parse(source: &str) -> Result<Vec<Statement>, Error> {
    let mut parser = Parser::new(tokenize(source)?);
    let statements = parser.parse_until(&[])?;
    if *parser.current() != Token::End {
        return parser.expected("the end of the template");
    }
    Ok(statements)
}

impl Parser {
    /// Statements up to a tag with one of these names, which is the current token then.
    fn parse_until(&mut self, ends: &[&str]) -> Result<Vec<Statement>, Error> {
        let mut statements = Vec::new();
        loop {
            match self.advance() {
                Token::Text(text) => statements.push(Statement::Text(text)),
                Token::PrintBegin => {
                    let value = self.parse_tuple(Self::parse_expression, None, false)?;
                    self.expect(&Token::PrintEnd)?;
                    statements.push(Statement::Print(value));
                }
                Token::BlockBegin => {
                    if ends.iter().any(|end| self.is_name(end)) {
                        return Ok(statements);
                    }
                    statements.push(self.nested(|parser| parser.parse_statement(ends))?);
                    self.expect(&Token::BlockEnd)?;
                }
                _ if ends.is_empty() => return Ok(statements),
                _ => {
                    return self.fail(format!(
                        "Unexpected end of template: it looks for '{}'",
                        ends.join("' or '")
                    ));
                }
            }
            self.check_known()?;
        }
    }

    /// Filters and tests that do not exist are an error where they would be met for certain.
    fn check_known(&mut self) -> Result<(), Error> {
        if self.is_branch {
            self.unknown.clear();
        }
        match self.unknown.pop() {
            Some((message, line)) => Err(Error::new(message).at(line)),
            None => Ok(()),
        }
    }

    /// The body of a block and the name of the tag that ends it.
    fn parse_body(&mut self, ends: &[&str], is_branch: bool) -> Result<Vec<Statement>, Error> {
        self.skip_operator(":");
        self.expect(&Token::BlockEnd)?;
        let outer = std::mem::replace(&mut self.is_branch, is_branch);
        let body = self.parse_until(ends);
        self.is_branch = outer;
        body
    }

    /// A body with one possible end, which is passed.
    fn parse_block(&mut self, end: &str) -> Result<Vec<Statement>, Error> {
        let body = self.parse_body(&[end], false)?;
        self.advance();
        Ok(body)
    }

    /// A body that is a function of its own in Jinja: loops around it cannot be left from it.
    fn parse_function(
        &mut self,
        name: Option<Arc<str>>,
        parameters: Parameters,
        end: &str,
    ) -> Result<Arc<Macro>, Error> {
        let outer = std::mem::replace(&mut self.is_in_loop, false);
        self.macros.push(SpecialNames::default());
        let body = self.parse_block(end);
        self.is_in_loop = outer;
        let mut uses = self.macros.pop().unwrap_or_default();
        let is_given = |name: &str| parameters.iter().any(|(known, _)| **known == *name);
        let caller = parameters.iter().find(|(known, _)| &**known == "caller");
        if uses.caller && caller.is_some_and(|(_, default)| default.is_none()) {
            return self.fail("the special argument \"caller\" must be omitted or have a default");
        }
        uses.kwargs &= !is_given("kwargs");
        uses.varargs &= !is_given("varargs");
        Ok(Arc::new(Macro { name, parameters, body: body?, uses }))
    }

    fn parse_statement(&mut self, ends: &[&str]) -> Result<Statement, Error> {
        let line = self.line();
        let Token::Name(tag) = self.current().clone() else { return self.expected("a tag name") };
        self.advance();
        match &*tag {
            "if" => self.parse_if(),
            "for" => self.parse_for(line),
            "set" => self.parse_set(line),
            "with" => self.parse_with(),
            "macro" => {
                let name = self.expect_assignable()?;
                let parameters = self.parse_parameters()?;
                Ok(Statement::Macro(self.parse_function(Some(name), parameters, "endmacro")?))
            }
            "call" => {
                let has_parameters = self.is_operator("(");
                let parameters = if has_parameters { self.parse_parameters()? } else { Vec::new() };
                let call = self.parse_expression()?;
                let Expression::Call(call) = call else {
                    return Err(Error::new("expected call").at(line));
                };
                Ok(Statement::Call(self.parse_function(None, parameters, "endcall")?, call))
            }
            "filter" => {
                let mut filter = self.parse_filter(None)?;
                while self.skip_operator("|") {
                    filter = self.parse_block_filter(Some(filter))?;
                }
                Ok(Statement::Filter(filter, self.parse_block("endfilter")?))
            }
            "generation" => {
                let body = self.parse_function(None, Vec::new(), "endgeneration")?;
                Ok(Statement::Generation(body))
            }
            "autoescape" => {
                let is_on = self.parse_expression()?;
                Ok(Statement::Autoescape(is_on, self.parse_block("endautoescape")?))
            }
            "block" => {
                let name = self.expect_name()?;
                while self.skip_name("scoped") || self.skip_name("required") {}
                let outer = std::mem::replace(&mut self.is_in_loop, false);
                let body = self.parse_block("endblock");
                self.is_in_loop = outer;
                self.skip_name(&name);
                Ok(Statement::Block(body?))
            }
            "break" | "continue" if !self.is_in_loop => {
                Err(Error::new(format!("'{tag}' stands outside of a loop")).at(line))
            }
            "break" => Ok(Statement::Break),
            "continue" => Ok(Statement::Continue),
            "print" => self.parse_print(),
            "include" | "import" | "from" | "extends" => {
                while !matches!(self.current(), Token::BlockEnd | Token::End) {
                    self.advance();
                }
                let message = format!("a chat template has no other templates to {tag}");
                Ok(Statement::Fail(message, line))
            }
            _ => {
                let mut message = format!("Encountered unknown tag '{tag}'.");
                if !ends.is_empty() {
                    message.push_str(&format!(" Jinja looks for '{}'.", ends.join("' or '")));
                }
                Err(Error::new(message).at(line))
            }
        }
    }

    fn parse_if(&mut self) -> Result<Statement, Error> {
        let mut branches = Vec::new();
        loop {
            let known = self.unknown.len();
            let test = self.parse_tuple(Self::parse_or, None, false)?;
            let test = self.check_height(test)?;
            self.unknown.truncate(known);
            let body = self.parse_body(&["elif", "else", "endif"], true)?;
            branches.push((test, body));
            match self.advance() {
                token if is_named(&token, "elif") => {}
                token if is_named(&token, "else") => {
                    let otherwise = self.parse_body(&["endif"], true)?;
                    self.advance();
                    return Ok(Statement::If(branches, otherwise));
                }
                _ => return Ok(Statement::If(branches, Vec::new())),
            }
        }
    }

    fn parse_for(&mut self, line: usize) -> Result<Statement, Error> {
        let target = self.parse_target(Some("in"), false)?;
        self.refuse_loop(&target)?;
        self.loops += 1;
        let parsed = self.parse_for_behind(target, line);
        self.loops -= 1;
        parsed
    }

    fn parse_for_behind(&mut self, target: Target, line: usize) -> Result<Statement, Error> {
        if !self.skip_name("in") {
            return self.expected("'in'");
        }
        let iterable = self.parse_tuple(Self::parse_or, Some("recursive"), false)?;
        let iterable = self.check_height(iterable)?;
        let condition = if self.skip_name("if") { Some(self.parse_expression()?) } else { None };
        let is_recursive = self.skip_name("recursive");
        let outer = std::mem::replace(&mut self.is_in_loop, true);
        let body = self.parse_body(&["endfor", "else"], false);
        self.is_in_loop = outer;
        let body = body?;
        let otherwise = match self.advance() {
            token if is_named(&token, "else") => self.parse_block("endfor")?,
            _ => Vec::new(),
        };
        let statement = For { target, iterable, condition, is_recursive, body, otherwise, line };
        Ok(Statement::For(Arc::new(statement)))
    }

    /// A loop has a variable of this name.
    fn refuse_loop(&self, target: &Target) -> Result<(), Error> {
        match target {
            Target::Name(name) if &**name == "loop" => {
                self.fail("Can't assign to special loop variable in for-loop")
            }
            Target::Tuple(targets) => {
                targets.iter().try_for_each(|target| self.refuse_loop(target))
            }
            _ => Ok(()),
        }
    }

    fn parse_set(&mut self, line: usize) -> Result<Statement, Error> {
        let target = self.parse_target(None, true)?;
        if self.loops > 0 {
            self.refuse_loop(&target)?;
        }
        if self.skip_operator("=") {
            let value = self.parse_tuple(Self::parse_expression, None, false)?;
            return Ok(Statement::Set(target, value, line));
        }
        let mut filter = None;
        while self.skip_operator("|") {
            filter = Some(self.parse_block_filter(filter)?);
        }
        Ok(Statement::SetBlock(target, filter, self.parse_block("endset")?, line))
    }

    fn parse_block_filter(&mut self, value: Option<Expression>) -> Result<Expression, Error> {
        let filter = self.parse_filter(value)?;
        self.check_height(filter)
    }

    fn parse_with(&mut self) -> Result<Statement, Error> {
        let mut assignments = Vec::new();
        while *self.current() != Token::BlockEnd {
            if !assignments.is_empty() {
                self.expect_operator(",")?;
            }
            let target = self.parse_target(None, false)?;
            self.expect_operator("=")?;
            assignments.push((target, self.parse_expression()?));
        }
        Ok(Statement::With(assignments, self.parse_block("endwith")?))
    }

    fn parse_parameters(&mut self) -> Result<Parameters, Error> {
        self.expect_operator("(")?;
        let mut parameters = Parameters::new();
        let mut known = HashSet::new();
        while !self.is_operator(")") {
            if !parameters.is_empty() {
                self.expect_operator(",")?;
            }
            let name = self.expect_assignable()?;
            if !known.insert(name.clone()) {
                return self.fail(format!("duplicate argument '{name}'"));
            }
            let default = if self.skip_operator("=") {
                Some(self.parse_expression()?)
            } else if parameters.last().is_some_and(|(_, default)| default.is_some()) {
                return self.fail("non-default argument follows default argument");
            } else {
                None
            };
            parameters.push((name, default));
        }
        self.expect_operator(")")?;
        Ok(parameters)
    }

    fn parse_print(&mut self) -> Result<Statement, Error> {
        let mut values = Vec::new();
        while *self.current() != Token::BlockEnd {
            if !values.is_empty() {
                self.expect_operator(",")?;
            }
            values.push(self.parse_expression()?);
        }
        Ok(Statement::Print(Expression::Concat(values)))
    }
}
