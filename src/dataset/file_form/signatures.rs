//! Files that are known by their first bytes.

use super::fault::FileFault;

/// The byte-order mark of UTF-8, which JSONL may begin with.
pub(super) const UTF8_MARK: &[u8] = b"\xef\xbb\xbf";

/// Byte-order marks, the longer ones first.
const MARKS: &[(&[u8], &str)] = &[
    (b"\xff\xfe\0\0", "UTF-32LE"),
    (b"\0\0\xfe\xff", "UTF-32BE"),
    (b"\xff\xfe", "UTF-16LE"),
    (b"\xfe\xff", "UTF-16BE"),
];

const UNPACK: &str = "unpack it, and upload the JSONL file that is in it";
const EXPORT: &str = "write its rows as JSONL, one JSON object a line";

/// First bytes, the kind of file, and what to do.
const SIGNATURES: &[(&[u8], &str, &str)] = &[
    (b"\x1f\x8b", "packed with gzip", UNPACK),
    (b"BZh", "packed with bzip2", UNPACK),
    (b"\xfd7zXZ\0", "packed with xz", UNPACK),
    (b"\x28\xb5\x2f\xfd", "packed with zstd", UNPACK),
    (b"\x04\x22\x4d\x18", "packed with lz4", UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", UNPACK),
    (b"Rar!\x1a\x07", "a RAR archive", UNPACK),
    (
        b"PAR1",
        "a Parquet table",
        "write its rows as JSONL, such as with pandas' `to_json(…, orient=\"records\", lines=True)`",
    ),
    (b"ARROW1", "an Arrow table", EXPORT),
    (b"\xff\xff\xff\xff", "an Arrow table", EXPORT),
    (b"ORC", "an ORC table", EXPORT),
    (b"Obj\x01", "an Avro file", EXPORT),
    (b"\x89HDF\r\n", "an HDF5 file", EXPORT),
    (b"\x93NUMPY", "a NumPy array", EXPORT),
    (b"SQLite format 3\0", "an SQLite database", EXPORT),
    (b"\xd0\xcf\x11\xe0", "an old Excel or Word file", EXPORT),
    (b"%PDF-", "a PDF", "upload the examples as JSONL, one JSON object a line"),
];

/// Beginnings of texts, in small letters.
const TEXTS: &[(&[u8], &str)] = &[
    (b"<!doctype", "an HTML page"),
    (b"<html", "an HTML page"),
    (b"<?xml", "XML"),
    (b"{\\rtf", "an RTF document"),
];

/// The fault of a file that begins with these bytes, if it is known by them.
pub(super) fn find(head: &[u8]) -> Option<FileFault> {
    if let Some((_, name)) = MARKS.iter().find(|(mark, _)| head.starts_with(mark)) {
        return Some(FileFault::Encoding(name));
    }
    // Two characters of ASCII, which each JSON text begins with, in more than a byte each.
    if let [a, b, c, d, ..] = *head {
        match [a, b, c, d].map(|byte| byte != 0) {
            [true, false, true, false] => return Some(FileFault::Encoding("UTF-16LE")),
            [false, true, false, true] => return Some(FileFault::Encoding("UTF-16BE")),
            [true, false, false, false] => return Some(FileFault::Encoding("UTF-32LE")),
            [false, false, false, true] => return Some(FileFault::Encoding("UTF-32BE")),
            _ => {}
        }
    }
    if head.starts_with(b"PK\x03\x04") {
        return Some(of_zip(head));
    }
    let signature = SIGNATURES.iter().find(|(first, ..)| head.starts_with(first));
    if let Some((_, kind, remedy)) = signature {
        return Some(FileFault::Foreign { kind, remedy });
    }
    if head.get(257..262) == Some(b"ustar") {
        return Some(FileFault::Foreign { kind: "a tar archive", remedy: UNPACK });
    }
    let text = head.strip_prefix(UTF8_MARK).unwrap_or(head).trim_ascii_start();
    let kind = TEXTS.iter().find(|(start, _)| {
        text.get(..start.len()).is_some_and(|text| text.eq_ignore_ascii_case(start))
    });
    let remedy = "upload the examples as JSONL, one JSON object a line";
    kind.map(|(_, kind)| FileFault::Foreign { kind, remedy })
}

/// A zip archive, or a file of an office program, which is one: by the name of its first entry.
fn of_zip(head: &[u8]) -> FileFault {
    let name = head.get(30..).unwrap_or_default();
    let office: [&[u8]; 6] =
        [b"[Content_Types].xml", b"_rels/", b"xl/", b"docProps/", b"word/", b"mimetype"];
    if office.iter().any(|first| name.starts_with(first)) {
        return FileFault::Foreign { kind: "of an office program (such as .xlsx)", remedy: EXPORT };
    }
    FileFault::Foreign { kind: "a zip archive", remedy: UNPACK }
}
