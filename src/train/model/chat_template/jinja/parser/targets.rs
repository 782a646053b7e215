//! What values are assigned to.

use std::sync::Arc;

use super::super::ast::Target;
use super::super::error::Error;
use super::super::lexer::Token;
use super::tokens::Parser;

impl Parser {
    /// What a value is assigned to: a name, an attribute of a namespace, or a tuple of these.
    pub(super) fn parse_target(
        &mut self,
        end: Option<&str>,
        may_be_attribute: bool,
    ) -> Result<Target, Error> {
        let mut targets = Vec::new();
        let mut is_tuple = false;
        loop {
            if self.is_operator("=") || end.is_some_and(|end| self.is_name(end)) {
                break;
            }
            if matches!(self.current(), Token::BlockEnd | Token::Operator(")" | "|")) {
                break;
            }
            targets.push(self.parse_one_target(may_be_attribute)?);
            if !self.skip_operator(",") {
                break;
            }
            is_tuple = true;
        }
        match targets.pop() {
            Some(target) if !is_tuple => Ok(target),
            Some(target) => {
                targets.push(target);
                Ok(Target::Tuple(targets))
            }
            None => self.expected("a name to assign to"),
        }
    }

    fn parse_one_target(&mut self, may_be_attribute: bool) -> Result<Target, Error> {
        if self.skip_operator("(") {
            let target = self.nested(|parser| parser.parse_target(None, may_be_attribute))?;
            self.expect_operator(")")?;
            return Ok(target);
        }
        let name = self.expect_assignable()?;
        if may_be_attribute && self.skip_operator(".") {
            return Ok(Target::Namespace(name, self.expect_name()?));
        }
        Ok(Target::Name(name))
    }

    /// A name that may be assigned to.
    pub(super) fn expect_assignable(&mut self) -> Result<Arc<str>, Error> {
        let name = self.expect_name()?;
        if matches!(&*name, "true" | "True" | "false" | "False" | "none" | "None") {
            return self.fail(format!("can't assign to '{name}'"));
        }
        Ok(name)
    }
}
