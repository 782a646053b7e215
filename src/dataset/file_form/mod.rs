//! What a file is where it is not JSONL: packed, in another encoding, a table, or JSON of another shape. It is
//! recognised while its bytes arrive, in constant memory, so that one sentence names it and not a problem a line.

mod fault;
mod json_shape;
mod signatures;
mod table;

pub use self::fault::FileFault;
use self::json_shape::JsonShape;
use self::signatures::UTF8_MARK;
use self::table::TableShape;

/// First bytes that are looked at: the header of a tar archive ends here.
const HEAD_BYTES: usize = 512;

/// Recognises what a file is, as its bytes arrive.
#[derive(Debug)]
pub(super) enum FileForm {
    /// The first bytes.
    Head(Vec<u8>),
    /// No byte but white space so far.
    Blank,
    /// JSON that may be no JSONL.
    Json(JsonShape),
    /// Text that may be a table.
    Text(TableShape),
    /// JSONL, or lines with a problem each.
    Lines,
    /// Not JSONL.
    Fault(FileFault),
}

impl Default for FileForm {
    fn default() -> Self {
        Self::Head(Vec::new())
    }
}

impl FileForm {
    /// Takes the next bytes.
    pub(super) fn feed(&mut self, bytes: &[u8]) {
        match self {
            Self::Lines | Self::Fault(_) => {}
            Self::Head(head) => {
                let (first, rest) = bytes.split_at(bytes.len().min(HEAD_BYTES - head.len()));
                head.extend_from_slice(first);
                if head.len() == HEAD_BYTES {
                    self.end_head();
                    self.feed(rest);
                }
            }
            Self::Blank => {
                let Some(start) = bytes.iter().position(|byte| !byte.is_ascii_whitespace()) else {
                    return;
                };
                *self = match bytes[start] {
                    b'[' | b'{' => Self::Json(JsonShape::of(bytes[start])),
                    _ => Self::Text(TableShape::default()),
                };
                self.feed(&bytes[start..]);
            }
            Self::Json(shape) => {
                if !shape.feed(bytes) {
                    *self = Self::Lines;
                }
            }
            Self::Text(shape) => match shape.feed(bytes) {
                None => {}
                Some(Some(separator)) => *self = Self::Fault(FileFault::Table(separator)),
                Some(None) => *self = Self::Lines,
            },
        }
    }

    /// Whether the file is certainly no JSONL, so that nothing in it is a line.
    pub(super) fn is_fault(&self) -> bool {
        match self {
            Self::Fault(_) => true,
            Self::Json(shape) => shape.is_fault(),
            _ => false,
        }
    }

    /// What the whole file is; `None` for lines.
    pub(super) fn finish(&mut self) -> Option<FileFault> {
        if matches!(self, Self::Head(_)) {
            self.end_head();
        }
        match self {
            Self::Fault(fault) => Some(*fault),
            Self::Json(shape) => shape.finish(),
            _ => None,
        }
    }

    /// Looks at the first bytes, and goes on with them.
    fn end_head(&mut self) {
        let Self::Head(head) = self else { return };
        let head = std::mem::take(head);
        *self = match signatures::find(&head) {
            Some(fault) => Self::Fault(fault),
            None => Self::Blank,
        };
        self.feed(head.strip_prefix(UTF8_MARK).unwrap_or(&head));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = r#"{"messages": [{"role": "user", "content": "a, b"}, {"x": [1, "]"]}]}"#;

    /// What the file is, whatever the chunks in which it comes.
    fn fault_of(bytes: &[u8]) -> Option<FileFault> {
        let mut faults = Vec::new();
        for chunk in [1, 2, 3, 7, HEAD_BYTES, bytes.len().max(1)] {
            let mut form = FileForm::default();
            for part in bytes.chunks(chunk) {
                form.feed(part);
            }
            let was_certain = form.is_fault();
            let fault = form.finish();
            assert!(fault.is_some() || !was_certain);
            faults.push(fault);
        }
        assert!(faults.iter().all(|fault| *fault == faults[0]), "{faults:?}");
        faults[0]
    }

    fn utf16(text: &str, is_big: bool) -> Vec<u8> {
        let unit = |unit: u16| if is_big { unit.to_be_bytes() } else { unit.to_le_bytes() };
        text.encode_utf16().flat_map(unit).collect()
    }

    fn utf32(text: &str, is_big: bool) -> Vec<u8> {
        let unit = |c: char| {
            let code = u32::from(c);
            if is_big { code.to_be_bytes() } else { code.to_le_bytes() }
        };
        text.chars().flat_map(unit).collect()
    }

    #[test]
    fn jsonl_is_jsonl_with_problems_in_its_lines_or_without() {
        let marked = format!("\u{feff}{LINE}\n{LINE}");
        for text in [
            "",
            "\n \r\n",
            LINE,
            &marked,
            &format!("{LINE}\n{LINE}\n"),
            &format!("\r\n{LINE}\r\n\r\n{LINE}\r\n"),
            &format!("{LINE}\r\r\n{LINE}\r\r\n"),
            // Lines with problems of their own.
            &format!("oops\n{LINE}\n"),
            &format!("oops, again\n{LINE}\n"),
            "oops, again",
            &format!("{{\"messages\": [\n{LINE}\n{LINE}\n"),
            &format!("{{\"messages\": [{{\"role\": \"us\n{LINE}\n{LINE}\n"),
            &format!("{LINE},\n{LINE},\n"),
            &format!("{LINE}{LINE}\n"),
            "[1]\n[2]\n",
            "[1] [2]\n",
            "}\n{\n",
        ] {
            assert_eq!(fault_of(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn a_file_in_another_encoding_is_named_with_a_mark_and_without() {
        let text = format!("{LINE}\n{LINE}\n");
        for mark in ["", "\u{feff}"] {
            let text = format!("{mark}{text}");
            for (bytes, name) in [
                (utf16(&text, false), "UTF-16LE"),
                (utf16(&text, true), "UTF-16BE"),
                (utf32(&text, false), "UTF-32LE"),
                (utf32(&text, true), "UTF-32BE"),
            ] {
                assert_eq!(fault_of(&bytes), Some(FileFault::Encoding(name)));
            }
        }
    }

    #[test]
    fn a_list_is_counted_on_one_line_and_over_several() {
        let list = |elements, is_closed| Some(FileFault::List { elements, is_closed });
        for (text, fault) in [
            (format!("[{LINE}, {LINE}]"), list(2, true)),
            (format!("[{LINE},{LINE}]\n"), list(2, true)),
            (format!("[\n{LINE},\n{LINE}\n]\n"), list(2, true)),
            (format!("[\r{LINE},\r{LINE}\r]\r"), list(2, true)),
            (format!("\u{feff} [\n  {LINE},\n  {LINE},\n]\n"), list(2, true)),
            (format!("[{LINE},\n{LINE},\n"), list(2, false)),
            ("[]".to_owned(), list(0, true)),
            ("[\n]".to_owned(), list(0, true)),
            ("[1, [2, 3], \"a,b\", null]".to_owned(), list(4, true)),
        ] {
            assert_eq!(fault_of(text.as_bytes()), fault, "{text}");
        }
    }

    #[test]
    fn objects_over_several_lines_are_counted() {
        let pretty =
            |end: &str| LINE.replace('{', &format!("{{{end}  ")).replace(',', &format!(",{end}"));
        // A comma in a text is no place for an end of line.
        let pretty = |end: &str| pretty(end).replace(&format!("a,{end} b"), "a, b");
        let spread = |objects| Some(FileFault::SpreadObjects { objects });
        for end in ["\n", "\r\n", "\r"] {
            let one = pretty(end);
            assert_eq!(fault_of(one.as_bytes()), spread(1), "{one}");
            let three = [one.as_str(); 3].join(end);
            assert_eq!(fault_of(three.as_bytes()), spread(3), "{three}");
        }
        // The first line says much and does not end.
        assert_eq!(fault_of(b"{\"messages\": [\n{\"a\": 1}\n]}\n"), spread(1));
        // The file ends too early.
        assert_eq!(fault_of(b"{\n\"messages\": [\n{\"a\": 1}\n"), spread(0));
    }

    #[test]
    fn ends_of_lines_in_cr_alone_are_named() {
        for text in [format!("{LINE}\r{LINE}\r"), format!("\r{LINE}\r\r{LINE}")] {
            assert_eq!(fault_of(text.as_bytes()), Some(FileFault::CarriageReturns), "{text}");
        }
    }

    #[test]
    fn tables_are_named_with_their_separator() {
        for (text, separator) in [
            ("prompt,completion\na,b\n", ','),
            ("\"prompt\",\"completion\"\r\n\"a\",\"b\"\r\n", ','),
            ("\u{feff}prompt;completion\n\na;b\n", ';'),
            ("prompt\tcompletion\ra\tb\r", '\t'),
            ("id,messages\n1,\"[{}]\"\n", ','),
        ] {
            assert_eq!(fault_of(text.as_bytes()), Some(FileFault::Table(separator)), "{text}");
        }
    }

    #[test]
    fn files_of_other_programs_are_named_by_their_first_bytes() {
        let mut tar = vec![0u8; 600];
        tar[..10].copy_from_slice(b"data.jsonl");
        tar[257..262].copy_from_slice(b"ustar");
        let zip = |name: &str| [b"PK\x03\x04", &[0u8; 26][..], name.as_bytes()].concat();
        for (bytes, word) in [
            (b"\x1f\x8b\x08\x00abc".to_vec(), "gzip"),
            (zip("data.jsonl"), "zip"),
            (zip("[Content_Types].xml"), "xlsx"),
            (zip("xl/workbook.xml"), "xlsx"),
            (b"PAR1\x15\x04".to_vec(), "Parquet"),
            (b"ARROW1\0\0".to_vec(), "Arrow"),
            (b"\x28\xb5\x2f\xfd....".to_vec(), "zstd"),
            (b"BZh91AY&SY".to_vec(), "bzip2"),
            (b"\xfd7zXZ\0".to_vec(), "xz"),
            (b"%PDF-1.7".to_vec(), "PDF"),
            (b"SQLite format 3\0".to_vec(), "SQLite"),
            (b"\n<!doctype html><html>".to_vec(), "HTML"),
            (tar, "tar"),
        ] {
            let said = fault_of(&bytes).expect("not JSONL").to_string();
            assert!(said.contains(word), "{word}: {said}");
        }
    }
}
