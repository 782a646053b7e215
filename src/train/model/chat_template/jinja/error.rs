//! Why a template cannot be read, or stops while it renders.

use std::fmt;

/// Longest message: texts of a template may stand in it.
const MAX_MESSAGE_BYTES: usize = 2048;

/// Why a template cannot be read, or stops while it renders.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Error(Box<Reason>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Reason {
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
    /// The template costs more than it may.
    Limit,
}

impl Error {
    /// Something that went wrong.
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self::of(Kind::Failed, message.into())
    }

    /// What the template says with `raise_exception`.
    pub(crate) fn raised(message: impl Into<String>) -> Self {
        Self::of(Kind::Raised, message.into())
    }

    /// The template costs more than it may.
    pub(crate) fn limit(message: impl Into<String>) -> Self {
        Self::of(Kind::Limit, message.into())
    }

    fn of(kind: Kind, message: String) -> Self {
        Self(Box::new(Reason { message: shortened(message), line: None, kind }))
    }

    /// Whether the template costs more than it may: it would with whatever else it is given.
    pub(crate) fn is_limit(&self) -> bool {
        self.0.kind == Kind::Limit
    }

    /// The same with the line, unless a line inside of it is known already.
    pub(crate) fn at(mut self, line: usize) -> Self {
        self.0.line.get_or_insert(line);
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0.message)?;
        match self.0.line {
            Some(line) if self.0.kind != Kind::Raised => {
                write!(formatter, " (line {line} of the template)")
            }
            _ => Ok(()),
        }
    }
}

impl std::error::Error for Error {}

/// A message that is not longer than an error may be.
pub(crate) fn shortened(mut message: String) -> String {
    if message.len() > MAX_MESSAGE_BYTES {
        message.truncate(message.floor_char_boundary(MAX_MESSAGE_BYTES));
        message.push('…');
        message.shrink_to_fit();
    }
    message
}
