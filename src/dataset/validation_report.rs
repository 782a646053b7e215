//! What a look at a file found: how many examples of which format, and every problem with its place.

use serde::{Deserialize, Serialize};

use super::{Format, MAX_LISTED_PROBLEMS};

/// One thing that is wrong, and where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Diagnostic {
    /// Line of the file, from 1.
    pub line: u64,
    /// Index of the message in `messages`, from 0, where one is at fault.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message_index: Option<usize>,
    /// Path of the key at fault, such as `messages[2].content`.
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

/// Diagnostics as they pile up: the first few with their place, all of them counted.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Diagnostics {
    /// The first [`MAX_LISTED_PROBLEMS`], in file order.
    pub listed: Vec<Diagnostic>,
    /// How many there are in all.
    pub total: u64,
}

impl Diagnostics {
    /// Adds one.
    pub fn push(&mut self, problem: Diagnostic) {
        self.total += 1;
        if self.listed.len() < MAX_LISTED_PROBLEMS {
            self.listed.push(problem);
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.total == 0
    }
}

/// What a look at a whole training or validation file found.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ValidationReport {
    /// Lines that hold an example, blank ones not counted.
    pub examples: u64,
    /// The format of the examples; `None` when there is none or they are mixed.
    pub format: Option<Format>,
    /// What makes the file unusable.
    pub problems: Diagnostics,
    /// What the user should know, though the file can be used (unknown keys, a BOM, a last
    /// message that is not the assistant's …): the same shape, listed and counted alike.
    pub warnings: Diagnostics,
}
