//! Quotes of texts that others wrote. Whatever an error, an event or a report repeats of a request or of a
//! file is cut here, so that its length is ours.

use std::borrow::Cow;

/// Longest quote, in characters.
pub const MOST_CHARS: usize = 200;

/// Stands for what was cut.
const MORE: char = '…';

/// The text, cut after [`MOST_CHARS`] characters.
pub fn excerpt(text: &str) -> Cow<'_, str> {
    match text.char_indices().nth(MOST_CHARS) {
        None => Cow::Borrowed(text),
        Some((end, _)) => {
            let mut cut = text[..end].to_owned();
            cut.push(MORE);
            Cow::Owned(cut)
        }
    }
}
