//! Escapes in the texts of expressions, as Python's string literals have them.

use super::error::Error;

/// A text between quotes with its escapes decoded. Unknown escapes stay as they are.
///
/// # Errors
/// Escapes that are cut off, or stand for no character.
pub(crate) fn decode(text: &str) -> Result<String, Error> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(position) = rest.find('\\') {
        out.push_str(&rest[..position]);
        rest = &rest[position + 1..];
        let Some(kind) = rest.chars().next() else { break };
        let after = &rest[kind.len_utf8()..];
        let simple = match kind {
            '\n' => Some(""),
            '\\' => Some("\\"),
            '\'' => Some("'"),
            '"' => Some("\""),
            'a' => Some("\u{7}"),
            'b' => Some("\u{8}"),
            'f' => Some("\u{c}"),
            'n' => Some("\n"),
            'r' => Some("\r"),
            't' => Some("\t"),
            'v' => Some("\u{b}"),
            _ => None,
        };
        if let Some(simple) = simple {
            out.push_str(simple);
            rest = after;
            continue;
        }
        let (digits, base, from) = match kind {
            'x' => (2, 16, after),
            'u' => (4, 16, after),
            'U' => (8, 16, after),
            '0'..='7' => {
                let is_octal = |c: &char| c.is_digit(8);
                (rest.chars().take(3).take_while(is_octal).count(), 8, rest)
            }
            'N' => {
                return Err(Error::new("names of characters (\\N{…}) are not supported in texts"));
            }
            // Jinja writes what is not ASCII as an escape of its own, which the backslash turns into text.
            other if !other.is_ascii() => {
                let code = u32::from(other);
                out.push_str(&match code {
                    0..=0xff => format!("\\x{code:02x}"),
                    0x100..=0xffff => format!("\\u{code:04x}"),
                    _ => format!("\\U{code:08x}"),
                });
                rest = after;
                continue;
            }
            _ => {
                out.push('\\');
                continue;
            }
        };
        let code = from.get(..digits).filter(|code| code.chars().all(|c| c.is_digit(base)));
        let Some(code) = code else {
            return Err(Error::new(format!("truncated \\{kind} escape")));
        };
        let character = u32::from_str_radix(code, base).ok().and_then(char::from_u32);
        let Some(character) = character else {
            return Err(Error::new(format!("the escape \\{kind}{code} is no character")));
        };
        out.push(character);
        rest = &from[digits..];
    }
    out.push_str(rest);
    Ok(out)
}
