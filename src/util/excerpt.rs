//! Quotes of texts that others wrote. Whatever an error, an event or a report repeats of a request or of a
//! file is cut here, so that its length is ours.

use std::borrow::Cow;
use std::fmt::{Display, Write};

/// Longest quote, in characters.
pub const MOST_CHARS: usize = 200;

/// Stands for what was cut.
const MORE: char = '…';

/// The text, cut after [`MOST_CHARS`] characters.
pub fn excerpt(text: &str) -> Cow<'_, str> {
    match text.char_indices().nth(MOST_CHARS) {
        None => Cow::Borrowed(text),
        Some((end, _)) => Cow::Owned(format!("{}{MORE}", &text[..end])),
    }
}

/// The same of what a value is shown as. No more of it is written than is quoted.
pub fn excerpt_of(value: impl Display) -> String {
    let mut quote = Quote { text: String::new(), room: MOST_CHARS };
    // It fails where the quote is full.
    if write!(quote, "{value}").is_err() {
        quote.text.push(MORE);
    }
    quote.text
}

/// A whole message, cut so that it has `most` bytes at most.
pub fn cut(mut message: String, most: usize) -> String {
    if message.len() > most {
        message.truncate(message.floor_char_boundary(most.saturating_sub(MORE.len_utf8())));
        message.push(MORE);
    }
    message
}

/// Takes so many more characters.
struct Quote {
    text: String,
    room: usize,
}

impl Write for Quote {
    fn write_str(&mut self, part: &str) -> std::fmt::Result {
        for character in part.chars() {
            self.room = self.room.checked_sub(1).ok_or(std::fmt::Error)?;
            self.text.push(character);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quote_has_two_hundred_characters_and_says_where_it_was_cut() {
        let (short, long) = ("é".repeat(200), "é".repeat(201));
        assert_eq!(excerpt(&short), short);
        assert_eq!(excerpt(&long), format!("{short}…"));
        let value = serde_json::json!({"key": "v".repeat(1 << 20)});
        assert_eq!(excerpt_of(&value), excerpt(&value.to_string()));
        assert_eq!(excerpt_of(12), "12");
    }

    #[test]
    fn a_message_is_cut_between_characters() {
        assert_eq!(cut("abc".to_owned(), 3), "abc");
        for most in 0..20 {
            let message = cut("é".repeat(30), most);
            assert!(
                message.len() <= most.max(MORE.len_utf8()) && message.ends_with(MORE),
                "{most}"
            );
        }
    }
}
