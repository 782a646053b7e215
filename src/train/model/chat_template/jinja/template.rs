//! A template that was read, and can be rendered.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::ast::Statement;
use super::budget::Limits;
use super::error::Error;
use super::interpreter::Interpreter;
use super::value::Value;
use super::{budget, free_names, parser};

/// Longest template that is read; those of models have some thousand characters.
const MAX_SOURCE_BYTES: usize = 512 * 1024;

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
        if source.len() > MAX_SOURCE_BYTES {
            return Err(Error::new(format!(
                "it has {} bytes, and no template may have more than {MAX_SOURCE_BYTES}",
                source.len()
            )));
        }
        Ok(Self { statements: parser::parse(source)? })
    }

    /// The names of variables and functions that it reads without having set them.
    pub(crate) fn free_names(&self) -> BTreeSet<String> {
        free_names::of(&self.statements)
    }

    /// What it writes with these values by their names, within the limits of a rendering.
    ///
    /// # Errors
    /// What the template refuses, what fails, with the line, and what costs too much.
    pub(crate) fn render<'a>(
        &self,
        context: impl IntoIterator<Item = (&'a str, Value)>,
    ) -> Result<String, Error> {
        let context = context.into_iter().map(|(name, value)| (Arc::from(name), value));
        budget::within(Limits::RENDERING, || {
            let mut interpreter = Interpreter::new(context);
            interpreter.run(&self.statements)?;
            Ok(interpreter.into_text())
        })
    }
}
