//! The validation report of a file: how many examples of which format, and the diagnostics.

use serde::{Deserialize, Serialize};

use super::{FileFault, Format, MAX_LISTED_PROBLEMS};
use crate::util::excerpt::{cut, excerpt};

/// Most bytes of all listed diagnostics together, as JSON has them and as a message has them. Requests of a
/// hundred bytes repeat them in replies, rows and events.
const MAX_LISTED_BYTES: usize = 12 * 1024;

/// Most bytes of one diagnostic's message, however much of a line it quotes.
const MAX_MESSAGE_BYTES: usize = 1000;

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

impl Diagnostic {
    /// The same, with a message and a key of bounded length.
    fn shortened(self) -> Self {
        let key = self.key.map(|key| excerpt(&key).into_owned());
        Self { key, message: cut(self.message, MAX_MESSAGE_BYTES), ..self }
    }

    /// How many bytes it takes, in the longer of its two forms.
    fn listed_bytes(&self) -> usize {
        // A diagnostic is texts and numbers, which become JSON in any case.
        let bytes = |json: serde_json::Result<String>| json.map_or(usize::MAX, |json| json.len());
        bytes(serde_json::to_string(self)).max(bytes(serde_json::to_string(&self.to_string())))
    }
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
    /// The first ones in file order: [`MAX_LISTED_PROBLEMS`], or fewer that fill [`MAX_LISTED_BYTES`].
    pub listed: Vec<Diagnostic>,
    /// How many there are in all.
    pub total: u64,
}

impl Diagnostics {
    /// Adds one.
    pub fn push(&mut self, diagnostic: Diagnostic) {
        let is_full = self.listed.len() as u64 != self.total;
        self.total += 1;
        if is_full || self.listed.len() == MAX_LISTED_PROBLEMS {
            return;
        }
        let diagnostic = diagnostic.shortened();
        let before: usize = self.listed.iter().map(Diagnostic::listed_bytes).sum();
        if before + diagnostic.listed_bytes() <= MAX_LISTED_BYTES {
            self.listed.push(diagnostic);
        }
    }

    /// The same within the bounds of what is listed, which earlier versions did not have.
    fn shortened(self) -> Self {
        let mut bounded = Self::default();
        for diagnostic in self.listed {
            bounded.push(diagnostic);
        }
        Self { total: self.total, ..bounded }
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

    /// A report from the store, which an earlier version may have written at any length.
    pub fn shortened(self) -> Self {
        let (problems, warnings) = (self.problems.shortened(), self.warnings.shortened());
        Self { problems, warnings, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn diagnostic(line: u64, key: &str, message: String) -> Diagnostic {
        Diagnostic { line, message_index: Some(0), key: Some(key.to_owned()), message }
    }

    #[test]
    fn what_is_listed_has_a_bound_in_bytes_and_all_is_counted() {
        let mebibyte = 1 << 20;
        for text in ["a", "\"", "\u{1}", "\u{e000}", "漢"] {
            let long = text.repeat(mebibyte / text.len());
            let mut problems = Diagnostics::default();
            for line in 1..=60 {
                problems.push(diagnostic(line, &long, format!("it is {long}")));
            }
            assert_eq!(problems.total, 60);
            assert!(
                (1..=50).contains(&problems.listed.len()),
                "{text:?}: {}",
                problems.listed.len()
            );
            let json = serde_json::to_string(&problems).expect("JSON").len();
            assert!(json < MAX_LISTED_BYTES + 100, "{text:?}: {json}");
            let lines: String = problems.listed.iter().map(|one| format!("\n{one}")).collect();
            assert!(serde_json::to_string(&lines).expect("JSON").len() <= MAX_LISTED_BYTES + 100);
            assert!(problems.listed[0].message.starts_with("it is ") && lines.contains('…'));
        }
    }

    #[test]
    fn those_that_are_listed_are_the_first_ones() {
        let mut problems = Diagnostics::default();
        for line in 1..=30 {
            let length = if line == 20 { 1 } else { 950 };
            problems.push(diagnostic(line, "k", "m".repeat(length)));
        }
        let lines: Vec<u64> = problems.listed.iter().map(|one| one.line).collect();
        assert_eq!(lines, (1..=lines.len() as u64).collect::<Vec<u64>>());
        assert!(lines.len() < 20, "{lines:?}");
    }
}
