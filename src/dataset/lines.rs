//! Splits a JSONL file into lines while its bytes arrive, in constant memory.

use super::MAX_LINE_BYTES;
use super::file_form::{FileFault, FileForm};

/// What is wrong with a line before it is parsed as JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LineFault {
    /// Longer than [`MAX_LINE_BYTES`]. Its bytes were dropped.
    TooLong,
    /// Not UTF-8.
    NotUtf8,
}

impl std::fmt::Display for LineFault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::TooLong => {
                write!(f, "the line is longer than {} MiB: split the example", MAX_LINE_BYTES >> 20)
            }
            Self::NotUtf8 => write!(f, "the line is not UTF-8: save the file as UTF-8"),
        }
    }
}

/// Called with each line that is not blank: its number, from 1 (blank lines count), and its text without the
/// end of line.
pub type LineCallback<'a> = dyn FnMut(u64, Result<&str, LineFault>) + 'a;

/// Splits bytes into lines. Accepts a byte-order mark, CRLF and blank lines. Recognises a file that has no lines
/// of JSON at all.
#[derive(Debug, Default)]
pub struct LineSplitter {
    form: FileForm,
    lines_done: u64,
    pending: Vec<u8>,
    is_too_long: bool,
}

impl LineSplitter {
    /// Adds the next bytes and emits the lines that end in them.
    pub fn feed(&mut self, mut bytes: &[u8], each: &mut LineCallback<'_>) {
        self.form.feed(bytes);
        if self.form.is_fault() {
            return;
        }
        while let Some(end) = memchr::memchr(b'\n', bytes) {
            let line = &bytes[..end];
            bytes = &bytes[end + 1..];
            // Most lines are in one chunk and need no copy.
            let is_whole = self.pending.is_empty() && !self.is_too_long;
            if is_whole && line.len() <= MAX_LINE_BYTES {
                self.lines_done += 1;
                emit(self.lines_done, line, each);
                continue;
            }
            self.buffer(line);
            self.end_line(each);
        }
        self.buffer(bytes);
    }

    /// Emits the last line, if the file does not end with an end of line. Returns what the whole file is instead
    /// of JSONL; what was emitted of such a file means nothing.
    #[must_use]
    pub fn finish(&mut self, each: &mut LineCallback<'_>) -> Option<FileFault> {
        let fault = self.form.finish();
        if fault.is_none() && (!self.pending.is_empty() || self.is_too_long) {
            self.end_line(each);
        }
        fault
    }

    fn buffer(&mut self, bytes: &[u8]) {
        if self.is_too_long || self.pending.len() + bytes.len() > MAX_LINE_BYTES {
            self.is_too_long = true;
            self.pending.clear();
            return;
        }
        self.pending.extend_from_slice(bytes);
    }

    fn end_line(&mut self, each: &mut LineCallback<'_>) {
        self.lines_done += 1;
        if self.is_too_long {
            each(self.lines_done, Err(LineFault::TooLong));
        } else {
            emit(self.lines_done, &self.pending, each);
        }
        self.pending.clear();
        self.is_too_long = false;
    }
}

/// Emits a line, unless it is blank.
fn emit(number: u64, mut bytes: &[u8], each: &mut LineCallback<'_>) {
    if number == 1 {
        bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    }
    let bytes = bytes.trim_ascii();
    if !bytes.is_empty() {
        each(number, std::str::from_utf8(bytes).map_err(|_| LineFault::NotUtf8));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(bytes: &[u8], chunk: usize) -> Vec<(u64, Result<String, LineFault>)> {
        let mut found = Vec::new();
        let mut each = |number: u64, line: Result<&str, LineFault>| {
            found.push((number, line.map(str::to_owned)));
        };
        let mut splitter = LineSplitter::default();
        for part in bytes.chunks(chunk) {
            splitter.feed(part, &mut each);
        }
        assert_eq!(splitter.finish(&mut each), None);
        found
    }

    #[test]
    fn lines_keep_their_numbers_through_a_bom_crlf_and_blank_lines() {
        let bytes = b"\xef\xbb\xbfone\r\n\r\n  \ntwo\n\xff\nlast";
        for chunk in 1..bytes.len() {
            let found = lines(bytes, chunk);
            assert_eq!(
                found,
                [
                    (1, Ok("one".to_owned())),
                    (4, Ok("two".to_owned())),
                    (5, Err(LineFault::NotUtf8)),
                    (6, Ok("last".to_owned())),
                ]
            );
        }
    }

    #[test]
    fn a_line_that_is_too_long_is_reported_and_dropped() {
        let mut bytes = vec![b'x'; MAX_LINE_BYTES + 1];
        bytes.extend_from_slice(b"\nnext\n");
        for chunk in [1 << 16, bytes.len()] {
            let found = lines(&bytes, chunk);
            assert_eq!(found, [(1, Err(LineFault::TooLong)), (2, Ok("next".to_owned()))]);
        }
    }
}
