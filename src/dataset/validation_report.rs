//! The validation report of a file: how many examples of which format, and the diagnostics.

use serde::{Deserialize, Serialize};

use super::{FileFault, Format, MAX_LISTED_PROBLEMS};

/// One thing that is wrong, with its place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Diagnostic {
    /// Line of the file, from 1.
    pub line: u64,
    /// Index of the message in `messages`, from 0, if the diagnostic is about one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message_index: Option<usize>,
    /// Path of the key, such as `messages[2].content`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// What is wrong and what to do.
    pub message: String,
}

impl std::fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "line {}", self.line)?;
        if let Some(index) = self.message_index {
            write!(f, ", message {index}")?;
        }
        if let Some(key) = &self.key {
            write!(f, ", key {key:?}")?;
        }
        write!(f, ": {}", self.message)
    }
}

impl From<FileFault> for Diagnostic {
    /// A problem of the whole file, which its first line stands for.
    fn from(fault: FileFault) -> Self {
        Self { line: 1, message_index: None, key: None, message: fault.to_string() }
    }
}

/// A list of diagnostics: the first ones are listed, all are counted.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Diagnostics {
    /// The first [`MAX_LISTED_PROBLEMS`], in file order.
    pub listed: Vec<Diagnostic>,
    /// How many there are in all.
    pub total: u64,
}

impl Diagnostics {
    /// Adds one.
    pub fn push(&mut self, diagnostic: Diagnostic) {
        self.total += 1;
        if self.listed.len() < MAX_LISTED_PROBLEMS {
            self.listed.push(diagnostic);
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.total == 0
    }
}

/// The result of validating a training or validation file.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ValidationReport {
    /// Lines with an example; blank lines do not count.
    pub examples: u64,
    /// The format of the examples; `None` when there is none or they are mixed.
    pub format: Option<Format>,
    /// Errors, which make the file unusable.
    pub problems: Diagnostics,
    /// Warnings about a file that can be used: unknown keys, a byte-order mark, a last message that is not
    /// the assistant's.
    pub warnings: Diagnostics,
}

impl ValidationReport {
    /// Of a file that is no JSONL: it has no examples and one problem.
    pub fn of_fault(fault: FileFault) -> Self {
        let mut report = Self::default();
        report.problems.push(fault.into());
        report
    }
}
