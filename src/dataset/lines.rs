//! Lines of a JSONL file, one by one, in constant memory.

use std::io::BufRead;

/// One line that is not blank.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Its number in the file, from 1; blank lines count.
    pub number: u64,
    /// Its bytes without the end of line.
    pub bytes: Vec<u8>,
}

/// Reads lines; tolerates a BOM, CRLF and blank lines.
pub struct LineReader<R> {
    _reader: R,
}

impl<R: BufRead> LineReader<R> {
    /// Reads from `reader`.
    pub fn new(reader: R) -> Self {
        Self { _reader: reader }
    }
}
