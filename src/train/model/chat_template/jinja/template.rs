//! A template that was read, and can be rendered.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::ast::Statement;
use super::error::Error;
use super::interpreter::Interpreter;
use super::value::Value;
use super::{free_names, parser};

/// A template.
pub(crate) struct Template {
    statements: Vec<Statement>,
}

impl Template {
    /// Reads a template.
    ///
    /// # Errors
    /// What is no Jinja, with the line.
    pub(crate) fn parse(source: &str) -> Result<Self, Error> {
        Ok(Self { statements: parser::parse(source)? })
    }

    /// The names of variables and functions that it reads without having set them.
    pub(crate) fn free_names(&self) -> BTreeSet<String> {
        free_names::of(&self.statements)
    }

    /// What it writes with these values by their names.
    ///
    /// # Errors
    /// What the template refuses, and what fails, with the line.
    pub(crate) fn render<'a>(
        &self,
        context: impl IntoIterator<Item = (&'a str, Value)>,
    ) -> Result<String, Error> {
        let context = context.into_iter().map(|(name, value)| (Arc::from(name), value));
        let mut interpreter = Interpreter::new(context);
        interpreter.run(&self.statements)?;
        Ok(interpreter.into_text())
    }
}
