//! Why a template cannot be read, or stops while it renders.

use std::fmt;

/// Longest text and most items that one value of a template may have.
pub(crate) const MAX_TEXT_BYTES: usize = 64 * 1024 * 1024;
const MAX_ITEMS: usize = 4 * 1024 * 1024;

/// Why a template cannot be read, or stops while it renders.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Error {
    message: String,
    /// The line of the template, where it is known.
    line: Option<usize>,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Something that went wrong.
    Failed,
    /// What the template itself says with `raise_exception`.
    Raised,
    /// The template takes too many steps.
    Endless,
}

impl Error {
    /// Something that went wrong.
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), line: None, kind: Kind::Failed }
    }

    /// What the template says with `raise_exception`.
    pub(crate) fn raised(message: impl Into<String>) -> Self {
        Self { message: message.into(), line: None, kind: Kind::Raised }
    }

    /// The template takes more than `steps` steps.
    pub(crate) fn endless(steps: u64) -> Self {
        let message = format!("the template takes more than {steps} steps");
        Self { message, line: None, kind: Kind::Endless }
    }

    /// Whether the template takes too many steps.
    pub(crate) fn is_endless(&self) -> bool {
        self.kind == Kind::Endless
    }

    /// The same with the line, unless a line inside of it is known already.
    pub(crate) fn at(mut self, line: usize) -> Self {
        self.line.get_or_insert(line);
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.message)?;
        match self.line {
            Some(line) if self.kind != Kind::Raised => {
                write!(formatter, " (line {line} of the template)")
            }
            _ => Ok(()),
        }
    }
}

impl std::error::Error for Error {}

/// Refuses texts that a template makes longer than the machine can bear.
pub(crate) fn check_text_bytes(bytes: usize) -> Result<(), Error> {
    if bytes <= MAX_TEXT_BYTES {
        return Ok(());
    }
    Err(Error::new(format!("the template makes a text of more than {MAX_TEXT_BYTES} bytes")))
}

/// Refuses lists that a template makes longer than the machine can bear.
pub(crate) fn check_items(items: usize) -> Result<(), Error> {
    if items <= MAX_ITEMS {
        return Ok(());
    }
    Err(Error::new(format!("the template makes a list of more than {MAX_ITEMS} items")))
}
