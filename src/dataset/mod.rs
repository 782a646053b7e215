//! Training data: one example per JSONL line, and the diagnostics of a file.
//!
//! `validate` reads uploads with this module, and the trainer reads the same bytes with it when a job starts.
//! So both apply the same rules to a line.

pub mod example;
mod file_form;
pub mod lines;
pub mod parse;
pub mod validation_report;

pub use example::{Example, Format, Message, Role, ToolCall};
pub use file_form::FileFault;
pub use lines::{LineFault, LineSplitter};
pub use parse::{drop_schema_nulls, parse_example, parse_messages, plain_format, tool_of_function};
pub use validation_report::{Diagnostic, Diagnostics, ValidationReport};

/// Fewest examples that a training file may hold.
pub const MIN_EXAMPLES: u64 = 10;

/// Most diagnostics that are listed; the rest is counted.
pub const MAX_LISTED_PROBLEMS: usize = 50;

/// Longest line of a training file, in bytes.
pub const MAX_LINE_BYTES: usize = 4 * 1024 * 1024;
