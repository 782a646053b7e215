//! `wordwrap`, as Python's `textwrap` breaks lines.

use super::super::arguments::{Arguments, required_text, whole};
use super::super::error::Error;
use super::super::value::Value;
use super::super::{budget, string_parts, unicode};

/// `wordwrap`: Python's `textwrap.wrap` for each line.
pub(super) fn word_wrap(value: &Value, arguments: Arguments) -> Result<Value, Error> {
    let names = ["width", "break_long_words", "wrapstring", "break_on_hyphens"];
    let [width, break_long, separator, on_hyphens] = arguments.bind("wordwrap", names, 0)?;
    let width = usize::try_from(whole(width.as_ref(), 79)?).unwrap_or(0);
    if width == 0 {
        return Err(Error::new("invalid width (must be > 0)"));
    }
    let separator = match separator.unwrap_or(Value::None) {
        Value::None => "\n".to_owned(),
        other => required_text(&other)?.to_owned(),
    };
    let wrapper = Wrapper {
        width,
        breaks_long_words: break_long.is_none_or(|breaks| breaks.is_true()),
        breaks_on_hyphens: on_hyphens.is_none_or(|breaks| breaks.is_true()),
    };
    let text = match value {
        Value::Undefined(reason) => return Err(Error::new(reason.as_ref())),
        other => required_text(other)?,
    };
    let mut out = Wrapped { text: String::new(), separator: &separator, is_first: true };
    for line in string_parts::lines(text, false)? {
        // Each character takes up four bytes for a while.
        budget::check_text_bytes(line.len().saturating_mul(4))?;
        budget::charge_text(line.len().saturating_mul(16))?;
        let characters: Vec<char> = line.chars().collect();
        wrapper.wrap(&characters, &mut out)?;
    }
    Ok(out.text.into())
}

/// The lines so far.
struct Wrapped<'a> {
    text: String,
    separator: &'a str,
    is_first: bool,
}

impl Wrapped<'_> {
    fn push(&mut self, line: &[char]) -> Result<(), Error> {
        budget::check_text_bytes(self.text.len() + self.separator.len() + line.len())?;
        if !std::mem::take(&mut self.is_first) {
            self.text.push_str(self.separator);
        }
        self.text.extend(line);
        budget::charge(1)
    }
}

struct Wrapper {
    width: usize,
    breaks_long_words: bool,
    breaks_on_hyphens: bool,
}

impl Wrapper {
    fn wrap(&self, text: &[char], out: &mut Wrapped<'_>) -> Result<(), Error> {
        let end_behind = |start: usize| match start < text.len() {
            true => self.chunk_end(text, start),
            false => start,
        };
        let is_space = |start: usize, end: usize| text[start..end].iter().all(|c| is_white(*c));
        let mut has_lines = false;
        // The chunk that comes next.
        let (mut start, mut end) = (0, end_behind(0));
        // A line that is empty is a line, too.
        if text.is_empty() {
            return out.push(&[]);
        }
        while start < end {
            if has_lines && is_space(start, end) {
                (start, end) = (end, end_behind(end));
            }
            let line_start = start;
            while start < end && end - line_start <= self.width {
                (start, end) = (end, end_behind(end));
            }
            // Python keeps the space before a long word where nothing of the word fits behind it.
            let mut keeps_space = false;
            if start < end && end - start > self.width {
                if self.breaks_long_words {
                    let room = self.width - (start - line_start);
                    keeps_space = room == 0;
                    start += self.break_at(&text[start..end], room);
                } else if start == line_start {
                    (start, end) = (end, end_behind(end));
                }
            }
            let line = &text[line_start..start];
            let kept = line.iter().rposition(|c| keeps_space || !is_white(*c));
            if let Some(kept) = kept {
                out.push(&line[..=kept])?;
                has_lines = true;
            }
        }
        if has_lines { Ok(()) } else { out.push(&[]) }
    }

    /// Where a word that is longer than a line is broken.
    fn break_at(&self, chunk: &[char], room: usize) -> usize {
        let room = room.min(chunk.len());
        if self.breaks_on_hyphens && chunk.len() > room {
            let hyphen = chunk[..room].iter().rposition(|character| *character == '-');
            if let Some(hyphen) = hyphen.filter(|hyphen| *hyphen > 0)
                && chunk[..hyphen].iter().any(|character| *character != '-')
            {
                return hyphen + 1;
            }
        }
        room
    }

    /// Where the chunk ends that begins here: white space, a word, or a part of a word with hyphens.
    fn chunk_end(&self, text: &[char], start: usize) -> usize {
        let at = |index: usize| text.get(index).copied();
        let run = |from: usize, is: &dyn Fn(char) -> bool| {
            text[from..].iter().position(|c| !is(*c)).map_or(text.len(), |length| from + length)
        };
        if is_white(text[start]) {
            return run(start, &is_white);
        }
        if !self.breaks_on_hyphens {
            return run(start, &|c| !is_white(c));
        }
        let before = start.checked_sub(1).and_then(at);
        let dashes = run(start, &|c| c == '-');
        let dash_of_words = |from: usize, before: Option<char>| {
            let end = run(from, &|c| c == '-');
            (end >= from + 2
                && before.is_some_and(is_word_mark)
                && at(end).is_some_and(unicode::is_word))
            .then_some(end)
        };
        if dashes > start
            && let Some(end) = dash_of_words(start, before)
        {
            return end;
        }
        let mut end = start;
        loop {
            end += 1;
            let is_letter = |index: Option<usize>| {
                index
                    .and_then(at)
                    .is_some_and(|c| unicode::is_word(c) && c != '_' && !unicode::is_numeric(c))
            };
            if at(end).is_none_or(is_white) {
                return end;
            }
            // A hyphen between two letters and one more that is followed by letters.
            if at(end) == Some('-') {
                let two = is_letter(end.checked_sub(1)) && is_letter(end.checked_sub(2));
                let joined = is_letter(end.checked_sub(1))
                    && end.checked_sub(2).and_then(at) == Some('-')
                    && is_letter(end.checked_sub(3));
                let follows = is_letter(Some(end + 1))
                    && (is_letter(Some(end + 2))
                        || (at(end + 2) == Some('-') && is_letter(Some(end + 3))));
                if (two || joined) && follows {
                    return end + 1;
                }
            }
            if at(end - 1).is_some_and(is_word_mark) && dash_of_words(end, at(end - 1)).is_some() {
                return end;
            }
        }
    }
}

fn is_white(character: char) -> bool {
    matches!(character, '\t' | '\n' | '\u{b}' | '\u{c}' | '\r' | ' ')
}

fn is_word_mark(character: char) -> bool {
    unicode::is_word(character) || "!\"'&.,?".contains(character)
}
