//! A table as text: a first line of column names, and a second one that is no JSON.

/// Longest first line that is looked at.
const MAX_HEADER_BYTES: usize = 1024;

/// Longest name of a column.
const MAX_NAME_CHARS: usize = 64;

/// Characters between columns.
const SEPARATORS: [char; 4] = [',', ';', '\t', '|'];

/// Looks at the first line and at the beginning of the second.
#[derive(Debug, Default)]
pub(in crate::dataset) struct TableShape {
    header: Vec<u8>,
    is_header_complete: bool,
}

impl TableShape {
    /// Takes the next bytes. When it is decided: the separator of a table, or `None` for lines.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> Option<Option<char>> {
        for byte in bytes {
            if !self.is_header_complete {
                match byte {
                    b'\n' | b'\r' => self.is_header_complete = true,
                    _ if self.header.len() == MAX_HEADER_BYTES => return Some(None),
                    _ => self.header.push(*byte),
                }
            } else if !byte.is_ascii_whitespace() {
                let is_json = matches!(byte, b'{' | b'[');
                return Some(if is_json { None } else { separator(&self.header) });
            }
        }
        None
    }
}

/// The separator of a line of column names; `None` for any other line.
fn separator(header: &[u8]) -> Option<char> {
    let header = std::str::from_utf8(header).ok()?.trim_end();
    let is_table = |separator: &char| {
        header.contains(*separator) && header.split(*separator).all(is_column_name)
    };
    SEPARATORS.into_iter().find(is_table)
}

/// A name such as `prompt`, `"prompt"` or `Unnamed: 0`.
fn is_column_name(text: &str) -> bool {
    let text = text.trim_matches(' ');
    let name = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text);
    let is_allowed = |c: char| c.is_alphanumeric() || " _-.:/()".contains(c);
    name.chars().any(char::is_alphabetic)
        && name.chars().count() <= MAX_NAME_CHARS
        && name.chars().all(is_allowed)
}
