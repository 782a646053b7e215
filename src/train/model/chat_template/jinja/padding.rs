//! Characters that fill a text up to a width.

use super::budget::{self, check_text_bytes};
use super::error::Error;

/// How many characters a text of a width lacks.
pub(crate) fn missing(text: &str, width: usize) -> usize {
    if width <= text.len() / 4 { 0 } else { width.saturating_sub(text.chars().count()) }
}

/// A text with so many fill characters before and behind it.
///
/// # Errors
/// The text would be too long.
pub(crate) fn padded(
    text: &str,
    fill: char,
    [before, behind]: [usize; 2],
) -> Result<String, Error> {
    let count = before.saturating_add(behind);
    let length = text.len().saturating_add(count.saturating_mul(fill.len_utf8()));
    check_text_bytes(length)?;
    budget::charge_text(length)?;
    let mut out = String::with_capacity(length);
    out.extend(std::iter::repeat_n(fill, before));
    out.push_str(text);
    out.extend(std::iter::repeat_n(fill, behind));
    Ok(out)
}
