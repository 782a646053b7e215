//! What is said of a file that is no JSONL.

/// What a file is instead of JSONL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileFault {
    /// Another kind of file, by its first bytes.
    Foreign {
        /// What it is.
        kind: &'static str,
        /// What to do.
        remedy: &'static str,
    },
    /// Text in another encoding, under `iconv`'s name.
    Encoding(&'static str),
    /// One JSON list with all examples.
    List {
        /// Its elements, as far as it was read.
        elements: u64,
        /// Whether it ends as a list does.
        is_closed: bool,
    },
    /// JSON objects over several lines each.
    SpreadObjects {
        /// How many were complete.
        objects: u64,
    },
    /// Lines that end in CR alone.
    CarriageReturns,
    /// A table as text, its columns separated by this character.
    Table(char),
}

impl std::fmt::Display for FileFault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Foreign { kind, remedy } => write!(f, "the file is {kind}: {remedy}"),
            Self::Encoding(name) => write!(
                f,
                "the file is {name}, and JSONL is UTF-8: save it as UTF-8, such as with `iconv -f \
                 {name} -t UTF-8`"
            ),
            Self::List { elements, is_closed } => {
                let examples = if *elements == 1 { "example" } else { "examples" };
                let end = if *is_closed { "" } else { " that does not end" };
                write!(
                    f,
                    "the file is one JSON list of {elements} {examples}{end}: JSONL has one example a \
                     line and no list around them, as `jq -c '.[]'` writes it"
                )
            }
            Self::SpreadObjects { objects } => {
                let over = match objects {
                    0 => "a JSON object".to_owned(),
                    1 => "1 JSON object".to_owned(),
                    more => format!("{more} JSON objects"),
                };
                write!(
                    f,
                    "the file is {over} over several lines: JSONL has one object a line, as `jq -c .` \
                     writes it"
                )
            }
            Self::CarriageReturns => write!(
                f,
                "the lines of the file end in CR alone: JSONL's end in LF (or CRLF), as `tr '\\r' '\\n'` \
                 writes them"
            ),
            Self::Table(separator) => write!(
                f,
                "the file is a table with the separator {separator:?} (CSV): JSONL has one JSON object a \
                 line, such as {{\"prompt\": \"…\", \"completion\": \"…\"}}"
            ),
        }
    }
}
