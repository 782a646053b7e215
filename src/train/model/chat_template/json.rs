//! The filter `tojson` of templates, in the spelling that models have seen in training.

use minijinja::value::Kwargs;
use minijinja::{Error, ErrorKind, Value};
use serde::Serialize;

/// JSON as Python's `json.dumps` writes it: a space behind commas and colons, no escapes for HTML.
pub(super) fn to_json(value: &Value, options: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = options.get("indent")?;
    // Other options of json.dumps do not change what templates use it for.
    let _: Option<bool> = options.get("ensure_ascii")?;
    options.assert_all_used()?;
    let failed = |error: serde_json::Error| {
        Error::new(ErrorKind::InvalidOperation, format!("tojson failed: {error}"))
    };
    let mut bytes = Vec::new();
    match indent {
        Some(width) => {
            let spaces = " ".repeat(width);
            let pretty = serde_json::ser::PrettyFormatter::with_indent(spaces.as_bytes());
            let mut serializer = serde_json::Serializer::with_formatter(&mut bytes, pretty);
            value.serialize(&mut serializer).map_err(failed)?;
        }
        None => {
            let mut serializer =
                serde_json::Serializer::with_formatter(&mut bytes, PythonJsonFormatter);
            value.serialize(&mut serializer).map_err(failed)?;
        }
    }
    let text = String::from_utf8_lossy(&bytes).into_owned();
    Ok(Value::from_safe_string(text))
}

/// One line with a space behind commas and colons.
struct PythonJsonFormatter;

impl serde_json::ser::Formatter for PythonJsonFormatter {
    fn begin_array_value<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
    ) -> std::io::Result<()> {
        writer.write_all(b": ")
    }
}
