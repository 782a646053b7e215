//! Filters that break lines: `wordwrap` and `pprint`.

use super::super::arguments::{required_text, whole};
use super::super::error::Error;
use super::super::value::{Arguments, Dict, Key, Value};
use super::super::{operators, repr, string_parts, unicode};

/// Widest line of `pprint`.
const PRETTY_WIDTH: usize = 80;

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
    let lines = string_parts::lines(text, false);
    let wrapped: Vec<String> =
        lines.into_iter().map(|line| wrapper.wrap(line).join(&separator)).collect();
    Ok(wrapped.join(&separator).into())
}

struct Wrapper {
    width: usize,
    breaks_long_words: bool,
    breaks_on_hyphens: bool,
}

impl Wrapper {
    fn wrap(&self, line: &str) -> Vec<String> {
        let characters: Vec<char> = line.chars().collect();
        let mut chunks = self.chunks(&characters);
        chunks.reverse();
        let mut lines = Vec::new();
        while !chunks.is_empty() {
            let mut current: Vec<char> = Vec::new();
            if is_space(chunks.last()) && !lines.is_empty() {
                chunks.pop();
            }
            while let Some(next) = chunks.last() {
                if current.len() + next.len() > self.width {
                    break;
                }
                current.extend(chunks.pop().unwrap_or_default());
            }
            if let Some(next) = chunks.last_mut().filter(|next| next.len() > self.width) {
                if self.breaks_long_words {
                    let end = self.break_at(next, self.width - current.len());
                    current.extend(next.drain(..end));
                } else if current.is_empty() {
                    current.extend(chunks.pop().unwrap_or_default());
                }
            }
            let kept = current.iter().rposition(|character| !is_white(*character));
            let has_space_chunk = kept.is_none_or(|kept| kept + 1 < current.len());
            if has_space_chunk {
                current.truncate(kept.map_or(0, |kept| kept + 1));
            }
            if !current.is_empty() {
                lines.push(current.into_iter().collect());
            }
        }
        lines
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

    /// Words, white space, and the parts of words with hyphens.
    fn chunks(&self, text: &[char]) -> Vec<Vec<char>> {
        let mut chunks = Vec::new();
        let mut start = 0;
        while start < text.len() {
            let end = self.chunk_end(text, start);
            chunks.push(text[start..end].to_vec());
            start = end;
        }
        chunks
    }

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

fn is_space(chunk: Option<&Vec<char>>) -> bool {
    chunk.is_some_and(|chunk| chunk.iter().all(|character| is_white(*character)))
}

fn is_word_mark(character: char) -> bool {
    unicode::is_word(character) || "!\"'&.,?".contains(character)
}

/// `pprint`: one line with sorted keys, or one line for each item where it would be too long.
pub(super) fn pretty(value: &Value) -> Result<String, Error> {
    let mut out = String::new();
    push_pretty(value, 0, 0, &mut out)?;
    Ok(out)
}

fn push_pretty(
    value: &Value,
    indent: usize,
    allowance: usize,
    out: &mut String,
) -> Result<(), Error> {
    let line = repr::repr(&with_sorted_keys(value)?)?;
    let room = PRETTY_WIDTH.saturating_sub(indent + allowance);
    if line.chars().count() <= room {
        out.push_str(&line);
        return Ok(());
    }
    match value {
        Value::Dict(_) => {
            let Value::Dict(sorted) = with_sorted_keys(value)? else { return Ok(()) };
            out.push('{');
            let last = sorted.len() - 1;
            for (index, (key, value)) in sorted.iter().enumerate() {
                let key = repr::repr(key)?;
                out.push_str(&key);
                out.push_str(": ");
                let rest = if index == last { allowance + 1 } else { 1 };
                push_pretty(value, indent + key.chars().count() + 3, rest, out)?;
                if index < last {
                    out.push_str(",\n");
                    out.push_str(&" ".repeat(indent + 1));
                }
            }
            out.push('}');
            Ok(())
        }
        Value::List(items) | Value::Tuple(items) => {
            let is_list = matches!(value, Value::List(_));
            let end = match (is_list, items.len()) {
                (true, _) => "]",
                (false, 1) => ",)",
                (false, _) => ")",
            };
            out.push(if is_list { '[' } else { '(' });
            for (index, item) in items.iter().enumerate() {
                let is_last = index + 1 == items.len();
                let rest = if is_last { allowance + end.len() } else { 1 };
                push_pretty(item, indent + 1, rest, out)?;
                if !is_last {
                    out.push_str(",\n");
                    out.push_str(&" ".repeat(indent + 1));
                }
            }
            out.push_str(end);
            Ok(())
        }
        Value::Text(_) if line.contains([' ', '\n']) => Err(Error::new(
            "pprint of a text that is longer than a line is not supported in chat templates",
        )),
        _ => {
            out.push_str(&line);
            Ok(())
        }
    }
}

/// The value with the keys of its dictionaries in order.
fn with_sorted_keys(value: &Value) -> Result<Value, Error> {
    let all = |items: &[Value]| items.iter().map(with_sorted_keys).collect::<Result<Vec<_>, _>>();
    Ok(match value {
        Value::List(items) => Value::list(all(items)?),
        Value::Tuple(items) => Value::tuple(all(items)?),
        Value::Dict(dict) => {
            let keyed = dict
                .iter()
                .map(|(key, value)| (key.clone(), Value::tuple(vec![key.clone(), value.clone()])));
            let mut sorted = Dict::default();
            for pair in operators::sort_by_key(keyed.collect(), false)? {
                if let Value::Tuple(pair) = pair {
                    sorted.insert(Key::new(pair[0].clone())?, with_sorted_keys(&pair[1])?);
                }
            }
            Value::dict(sorted)
        }
        other => other.clone(),
    })
}
