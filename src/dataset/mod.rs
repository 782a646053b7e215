//! Training data as the product sees it: one example per JSONL line, and what can be wrong with it.
//!
//! `validate` reads uploads with this, the engine reads the same bytes again when a job starts, so
//! both judge a line by one rule.

pub mod example;
pub mod lines;
pub mod parse;
pub mod validation_report;

pub use example::{Example, Format, Message, Role, ToolCall};
pub use lines::{LineFault, LineSplitter};
pub use parse::{parse_example, parse_messages, plain_format};
pub use validation_report::{Diagnostic, Diagnostics, ValidationReport};

/// Fewest examples that a training file may hold.
pub const MIN_EXAMPLES: u64 = 10;

/// Most problems that are listed with their place; the rest is counted.
pub const MAX_LISTED_PROBLEMS: usize = 50;

/// Longest line of a training file, in bytes.
pub const MAX_LINE_BYTES: usize = 4 * 1024 * 1024;
