//! Texts cut into parts: at separators, white space and ends of lines.

use super::budget;
use super::error::Error;
use super::unicode;

/// `split()` and `rsplit()`.
///
/// # Errors
/// An empty separator.
pub(crate) fn split<'a>(
    text: &'a str,
    separator: Option<&str>,
    limit: Option<usize>,
    is_from_end: bool,
) -> Result<Vec<&'a str>, Error> {
    budget::charge_text(text.len())?;
    let limit = limit.map_or(usize::MAX, |limit| limit.saturating_add(1));
    match separator {
        Some("") => Err(Error::new("empty separator")),
        Some(separator) if is_from_end => {
            let mut parts = collected(text.rsplitn(limit, separator))?;
            parts.reverse();
            Ok(parts)
        }
        Some(separator) => collected(text.splitn(limit, separator)),
        None if is_from_end => words_from_end(text, limit),
        None => words(text, limit),
    }
}

fn collected<'a>(all: impl Iterator<Item = &'a str>) -> Result<Vec<&'a str>, Error> {
    let mut parts = Vec::new();
    for part in all {
        push(&mut parts, part)?;
    }
    Ok(parts)
}

fn words(text: &str, limit: usize) -> Result<Vec<&str>, Error> {
    let mut parts = Vec::new();
    let mut rest = text.trim_start_matches(unicode::is_space);
    while !rest.is_empty() {
        let end = if parts.len() + 1 == limit { None } else { rest.find(unicode::is_space) };
        let (word, after) = rest.split_at(end.unwrap_or(rest.len()));
        push(&mut parts, word)?;
        rest = after.trim_start_matches(unicode::is_space);
    }
    Ok(parts)
}

fn words_from_end(text: &str, limit: usize) -> Result<Vec<&str>, Error> {
    let mut parts = Vec::new();
    let mut rest = text.trim_end_matches(unicode::is_space);
    while !rest.is_empty() {
        let is_last = parts.len() + 1 == limit;
        let space = rest.char_indices().rev().find(|(_, c)| unicode::is_space(*c));
        let start = space.filter(|_| !is_last).map_or(0, |(at, space)| at + space.len_utf8());
        push(&mut parts, &rest[start..])?;
        rest = rest[..start].trim_end_matches(unicode::is_space);
    }
    parts.reverse();
    Ok(parts)
}

/// `splitlines()`.
///
/// # Errors
/// More lines than a list may have.
pub(crate) fn lines(text: &str, keeps_ends: bool) -> Result<Vec<&str>, Error> {
    budget::charge_text(text.len())?;
    let is_end = |character: char| {
        matches!(
            character,
            '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'
                ..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}'
        )
    };
    let mut parts = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find(is_end) {
        let end = rest[at..].chars().next().map_or(1, char::len_utf8);
        let end = if rest[at..].starts_with("\r\n") { at + 2 } else { at + end };
        push(&mut parts, &rest[..if keeps_ends { end } else { at }])?;
        rest = &rest[end..];
    }
    if !rest.is_empty() {
        push(&mut parts, rest)?;
    }
    Ok(parts)
}

fn push<'a>(parts: &mut Vec<&'a str>, part: &'a str) -> Result<(), Error> {
    budget::charge(1)?;
    budget::check_items(parts.len() + 1)?;
    parts.push(part);
    Ok(())
}
