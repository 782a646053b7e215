//! What the parser knows while it reads: the tokens, and what surrounds them.

use std::sync::Arc;

use super::super::ast::SpecialNames;
use super::super::error::Error;
use super::super::lexer::Token;

/// How deep expressions and blocks may be nested.
const MAX_NESTING: usize = 64;

/// The state of parsing.
pub(crate) struct Parser {
    tokens: Vec<(Token, usize)>,
    position: usize,
    nesting: usize,
    /// Filters and tests that do not exist, with their lines: an error, unless they stand in a branch
    /// that may never be taken.
    pub(super) unknown: Vec<(String, usize)>,
    /// Whether what is read stands directly in a branch of an `{% if %}`.
    pub(super) is_branch: bool,
    /// Whether a loop surrounds what is read, and could be left from here.
    pub(super) is_in_loop: bool,
    /// How many loops surround what is read, also from outside of a macro.
    pub(super) loops: usize,
    /// Which special names the macros around what is read use.
    pub(super) macros: Vec<SpecialNames>,
}

impl Parser {
    pub(super) fn new(tokens: Vec<(Token, usize)>) -> Self {
        Self {
            tokens,
            position: 0,
            nesting: 0,
            unknown: Vec::new(),
            is_branch: false,
            is_in_loop: false,
            loops: 0,
            macros: Vec::new(),
        }
    }

    pub(super) fn current(&self) -> &Token {
        self.tokens.get(self.position).map_or(&Token::End, |(token, _)| token)
    }

    pub(super) fn following(&self) -> &Token {
        self.tokens.get(self.position + 1).map_or(&Token::End, |(token, _)| token)
    }

    pub(super) fn line(&self) -> usize {
        let last = self.tokens.last().map_or(1, |(_, line)| *line);
        self.tokens.get(self.position).map_or(last, |(_, line)| *line)
    }

    pub(super) fn advance(&mut self) -> Token {
        let token = self.current().clone();
        self.position += 1;
        token
    }

    pub(super) fn fail<T>(&self, message: impl Into<String>) -> Result<T, Error> {
        Err(Error::new(message).at(self.line()))
    }

    /// Fails, as something else stands here than what was expected.
    pub(super) fn expected<T>(&self, what: &str) -> Result<T, Error> {
        self.fail(format!("expected {what}, got {}", describe(self.current())))
    }

    pub(super) fn is_operator(&self, operator: &str) -> bool {
        matches!(self.current(), Token::Operator(found) if *found == operator)
    }

    pub(super) fn skip_operator(&mut self, operator: &str) -> bool {
        let found = self.is_operator(operator);
        self.position += usize::from(found);
        found
    }

    pub(super) fn expect_operator(&mut self, operator: &str) -> Result<(), Error> {
        if self.skip_operator(operator) { Ok(()) } else { self.expected(&format!("'{operator}'")) }
    }

    pub(super) fn is_name(&self, name: &str) -> bool {
        is_named(self.current(), name)
    }

    pub(super) fn skip_name(&mut self, name: &str) -> bool {
        let found = self.is_name(name);
        self.position += usize::from(found);
        found
    }

    pub(super) fn expect_name(&mut self) -> Result<Arc<str>, Error> {
        let Token::Name(name) = self.current() else { return self.expected("a name") };
        let name = name.clone();
        self.position += 1;
        Ok(name)
    }

    pub(super) fn expect(&mut self, token: &Token) -> Result<(), Error> {
        if self.current() != token {
            return self.expected(&describe(token));
        }
        self.position += 1;
        Ok(())
    }

    /// Reads something that may hold more of its kind.
    pub(super) fn nested<T>(
        &mut self,
        read: impl FnOnce(&mut Self) -> Result<T, Error>,
    ) -> Result<T, Error> {
        if self.nesting == MAX_NESTING {
            return self.fail("the template is nested too deeply");
        }
        self.nesting += 1;
        let result = read(self);
        self.nesting -= 1;
        result
    }
}

pub(super) fn is_named(token: &Token, name: &str) -> bool {
    matches!(token, Token::Name(found) if **found == *name)
}

fn describe(token: &Token) -> String {
    match token {
        Token::Text(_) => "text".to_owned(),
        Token::BlockBegin => "'{%'".to_owned(),
        Token::BlockEnd => "'%}'".to_owned(),
        Token::PrintBegin => "'{{'".to_owned(),
        Token::PrintEnd => "'}}'".to_owned(),
        Token::Name(name) => format!("'{name}'"),
        Token::String(_) => "a text in quotes".to_owned(),
        Token::Int(_) | Token::Float(_) => "a number".to_owned(),
        Token::Operator(operator) => format!("'{operator}'"),
        Token::End => "the end of the template".to_owned(),
    }
}
