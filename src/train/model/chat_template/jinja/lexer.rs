//! Tokens of a template, with the rules of Jinja for white space around tags (`trim_blocks` and
//! `lstrip_blocks` as transformers sets them).

use std::sync::Arc;

use super::error::Error;
use super::integer::Integer;
use super::{escapes, float, unicode};

/// A token.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Token {
    /// Text between tags.
    Text(String),
    /// `{%`.
    BlockBegin,
    /// `%}`.
    BlockEnd,
    /// `{{`.
    PrintBegin,
    /// `}}`.
    PrintEnd,
    Name(Arc<str>),
    String(Arc<str>),
    Int(Integer),
    Float(f64),
    Operator(&'static str),
    /// The end of the template.
    End,
}

/// Operators, longer ones before those that they begin with.
const OPERATORS: [&str; 27] = [
    "//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[", "]", "(", ")", "{", "}",
    ">", "<", "=", ".", ":", "|", ",", ";", "!",
];

/// The tokens of a template, each with its line.
///
/// # Errors
/// What is no Jinja, with the line.
pub(crate) fn tokenize(source: &str) -> Result<Vec<(Token, usize)>, Error> {
    let mut source = source.replace("\r\n", "\n").replace('\r', "\n");
    // One newline at the end of a template is not part of it.
    if source.ends_with('\n') {
        source.pop();
    }
    let mut lexer = Lexer { rest: &source, line: 1, is_line_start: true, tokens: Vec::new() };
    lexer.read_template()?;
    let line = lexer.line;
    lexer.tokens.push((Token::End, line));
    Ok(lexer.tokens)
}

/// Which kind of tag begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tag {
    Block,
    Print,
    Comment,
}

struct Lexer<'a> {
    rest: &'a str,
    line: usize,
    /// Whether nothing stands before `rest` on its line.
    is_line_start: bool,
    tokens: Vec<(Token, usize)>,
}

impl<'a> Lexer<'a> {
    fn read_template(&mut self) -> Result<(), Error> {
        while let Some((position, tag)) = next_tag(self.rest) {
            let begin =
                self.rest[position..].chars().nth(2).filter(|sign| matches!(sign, '-' | '+'));
            self.push_text(position, begin, tag != Tag::Print);
            self.advance(position + 2 + usize::from(begin.is_some()));
            match tag {
                Tag::Comment => self.skip_comment()?,
                Tag::Print => self.read_tag(Tag::Print)?,
                Tag::Block => match raw_begin(self.rest) {
                    Some(length) => self.read_raw(length)?,
                    None => self.read_tag(Tag::Block)?,
                },
            }
        }
        self.push_text(self.rest.len(), Some('+'), false);
        self.advance(self.rest.len());
        Ok(())
    }

    /// The text before a tag, without the white space that the tag takes away.
    fn push_text(&mut self, length: usize, sign: Option<char>, is_stripped: bool) {
        let text = &self.rest[..length];
        let kept = match sign {
            Some('-') => text.trim_end_matches(unicode::is_space),
            None if is_stripped => {
                let line = text.rfind('\n').map(|newline| newline + 1);
                let line = line.or(self.is_line_start.then_some(0));
                match line {
                    Some(start) if text[start..].chars().all(unicode::is_space) => &text[..start],
                    _ => text,
                }
            }
            _ => text,
        };
        if !kept.is_empty() {
            self.tokens.push((Token::Text(kept.to_owned()), self.line));
        }
    }

    fn advance(&mut self, length: usize) {
        let passed = &self.rest[..length];
        self.line += passed.matches('\n').count();
        if !passed.is_empty() {
            self.is_line_start = passed.ends_with('\n');
        }
        self.rest = &self.rest[length..];
    }

    fn fail<T>(&self, message: impl Into<String>) -> Result<T, Error> {
        Err(Error::new(message).at(self.line))
    }

    fn skip_comment(&mut self) -> Result<(), Error> {
        // Jinja does not mind a comment that begins where the template ends.
        if self.rest.is_empty() {
            return Ok(());
        }
        let Some(end) = self.rest.find("#}") else {
            return self.fail("Missing end of comment tag");
        };
        let sign = self.rest[..end].chars().next_back().filter(|sign| matches!(sign, '-' | '+'));
        self.advance(end + 2);
        self.skip_after_tag(sign);
        Ok(())
    }

    /// Takes away the white space that the end of a block or comment does.
    fn skip_after_tag(&mut self, sign: Option<char>) {
        match sign {
            Some('-') => {
                let kept = self.rest.trim_start_matches(unicode::is_space);
                self.advance(self.rest.len() - kept.len());
            }
            None if self.rest.starts_with('\n') => self.advance(1),
            _ => {}
        }
    }

    /// `{% raw %}…{% endraw %}`, of which the beginning has been read up to its word.
    fn read_raw(&mut self, length: usize) -> Result<(), Error> {
        let strips = self.rest[..length].ends_with("-%}");
        self.advance(length);
        if strips {
            self.skip_after_tag(Some('-'));
        }
        let mut searched = 0;
        while let Some(found) = self.rest[searched..].find("{%") {
            let start = searched + found;
            if let Some(end) = raw_end(&self.rest[start..]) {
                let sign = self.rest[start + 2..].chars().next();
                self.push_text(start, sign.filter(|sign| matches!(sign, '-' | '+')), true);
                let tag = &self.rest[start..start + end];
                let after = tag[..end - 2].chars().next_back();
                self.advance(start + end);
                self.skip_after_tag(after.filter(|sign| matches!(sign, '-' | '+')));
                return Ok(());
            }
            searched = start + 2;
        }
        self.fail("Missing end of raw directive")
    }

    fn read_tag(&mut self, tag: Tag) -> Result<(), Error> {
        let begin = if tag == Tag::Block { Token::BlockBegin } else { Token::PrintBegin };
        self.tokens.push((begin, self.line));
        let mut open: Vec<char> = Vec::new();
        loop {
            let space = self.rest.len() - self.rest.trim_start_matches(unicode::is_space).len();
            let before = self.rest.len();
            self.advance(space);
            if open.is_empty() && self.read_end(tag) {
                return Ok(());
            }
            let is_after_dot = before == self.rest.len()
                && matches!(self.tokens.last(), Some((Token::Operator("."), _)));
            let Some(first) = self.rest.chars().next() else {
                // The parser says what it expected.
                return Ok(());
            };
            if first.is_ascii_digit() {
                self.read_number(is_after_dot)?;
            } else if first == '_' || unicode::is_word(first) {
                let is_part = |c: char| unicode::is_word(c) || is_mark(c);
                let length = self.rest.find(|c: char| !is_part(c)).unwrap_or(self.rest.len());
                let name = Arc::from(&self.rest[..length]);
                self.tokens.push((Token::Name(name), self.line));
                self.advance(length);
            } else if first == '\'' || first == '"' {
                self.read_string(first)?;
            } else {
                self.read_operator(first, &mut open)?;
            }
        }
    }

    /// Reads the end of a tag, if it is here.
    fn read_end(&mut self, tag: Tag) -> bool {
        let (end, token) = match tag {
            Tag::Block => ("%}", Token::BlockEnd),
            _ => ("}}", Token::PrintEnd),
        };
        let sign = self
            .rest
            .chars()
            .next()
            .filter(|sign| *sign == '-' || (*sign == '+' && tag == Tag::Block));
        let start = usize::from(sign.is_some());
        if !self.rest[start..].starts_with(end) {
            return false;
        }
        self.tokens.push((token, self.line));
        self.advance(start + 2);
        if tag == Tag::Block || sign == Some('-') {
            self.skip_after_tag(sign);
        }
        true
    }

    fn read_number(&mut self, is_after_dot: bool) -> Result<(), Error> {
        let bytes = self.rest.as_bytes();
        let prefix = self.rest.get(..2).map(str::to_ascii_lowercase);
        let base = match prefix.as_deref() {
            Some("0x") => 16,
            Some("0o") => 8,
            Some("0b") => 2,
            _ => 10,
        };
        if base != 10 {
            let length = 2 + digits(&bytes[2..], base, true);
            if length > 2 {
                return self.push_integer(length);
            }
        }
        let whole = digits(bytes, 10, false);
        let mut end = whole;
        if !is_after_dot {
            if bytes.get(end) == Some(&b'.') {
                let fraction = digits(&bytes[end + 1..], 10, false);
                if fraction > 0 {
                    end += 1 + fraction;
                }
            }
            if matches!(bytes.get(end), Some(b'e' | b'E')) {
                let sign = usize::from(matches!(bytes.get(end + 1), Some(b'+' | b'-')));
                let exponent = digits(&bytes[end + 1 + sign..], 10, false);
                if exponent > 0 {
                    end += 1 + sign + exponent;
                }
            }
        }
        if end > whole {
            let value = float::parse(&self.rest[..end]).unwrap_or(f64::NAN);
            self.tokens.push((Token::Float(value), self.line));
            self.advance(end);
            return Ok(());
        }
        // A zero in front ends a number, unless only zeros follow.
        let length = if bytes[0] == b'0' {
            whole.min(self.rest.find(|c| c != '0' && c != '_').unwrap_or(whole)).max(1)
        } else {
            whole
        };
        self.push_integer(length)
    }

    fn push_integer(&mut self, length: usize) -> Result<(), Error> {
        let Some(value) = Integer::parse(&self.rest[..length], 0) else {
            return self.fail(format!("a number of {length} digits is too long"));
        };
        self.tokens.push((Token::Int(value), self.line));
        self.advance(length);
        Ok(())
    }

    fn read_string(&mut self, quote: char) -> Result<(), Error> {
        let mut is_escaped = false;
        let end = self.rest.char_indices().skip(1).find(|(_, character)| {
            let ends = *character == quote && !is_escaped;
            is_escaped = *character == '\\' && !is_escaped;
            ends
        });
        let Some((end, _)) = end else {
            return self.fail(format!("unexpected char '{quote}': the text does not end"));
        };
        let text = escapes::decode(&self.rest[1..end]).map_err(|error| error.at(self.line))?;
        self.tokens.push((Token::String(text.into()), self.line));
        self.advance(end + 1);
        Ok(())
    }

    fn read_operator(&mut self, first: char, open: &mut Vec<char>) -> Result<(), Error> {
        let found = OPERATORS.iter().find(|operator| self.rest.starts_with(**operator));
        let Some(operator) = found.filter(|operator| **operator != "!") else {
            return self.fail(format!("unexpected char '{first}'"));
        };
        match *operator {
            "{" => open.push('}'),
            "(" => open.push(')'),
            "[" => open.push(']'),
            "}" | ")" | "]" => match open.pop() {
                Some(expected) if expected == first => {}
                Some(expected) => {
                    return self.fail(format!("unexpected '{first}', expected '{expected}'"));
                }
                None => return self.fail(format!("unexpected '{first}'")),
            },
            _ => {}
        }
        self.tokens.push((Token::Operator(operator), self.line));
        self.advance(operator.len());
        Ok(())
    }
}

/// Combining marks may stand inside of names.
fn is_mark(character: char) -> bool {
    use unicode_properties::{GeneralCategoryGroup, UnicodeGeneralCategory};
    character.general_category_group() == GeneralCategoryGroup::Mark
}

/// How many bytes of digits stand here, single underscores between them.
fn digits(bytes: &[u8], base: u32, may_begin_with_underscore: bool) -> usize {
    let is_digit =
        |index: usize| bytes.get(index).is_some_and(|byte| char::from(*byte).is_digit(base));
    let mut length = 0;
    loop {
        let joins = length > 0 || may_begin_with_underscore;
        if is_digit(length) {
            length += 1;
        } else if joins && bytes.get(length) == Some(&b'_') && is_digit(length + 1) {
            length += 2;
        } else {
            return length;
        }
    }
}

/// Where the next tag begins.
fn next_tag(text: &str) -> Option<(usize, Tag)> {
    let mut searched = 0;
    while let Some(found) = text[searched..].find('{') {
        let position = searched + found;
        let tag = match text.as_bytes().get(position + 1) {
            Some(b'%') => Tag::Block,
            Some(b'{') => Tag::Print,
            Some(b'#') => Tag::Comment,
            _ => {
                searched = position + 1;
                continue;
            }
        };
        return Some((position, tag));
    }
    None
}

/// The length of ` raw %}` where it stands here.
fn raw_begin(text: &str) -> Option<usize> {
    let word = text.trim_start_matches(unicode::is_space).strip_prefix("raw")?;
    let end = word.trim_start_matches(unicode::is_space);
    let rest = end.strip_prefix("-%}").or_else(|| end.strip_prefix("%}"))?;
    Some(text.len() - rest.len())
}

/// The length of `{% endraw %}` where it stands here.
fn raw_end(text: &str) -> Option<usize> {
    let word = text.strip_prefix("{%")?;
    let word = word.strip_prefix(['-', '+']).unwrap_or(word);
    let word = word.trim_start_matches(unicode::is_space).strip_prefix("endraw")?;
    let end = word.trim_start_matches(unicode::is_space);
    let end = end.strip_prefix(['-', '+']).unwrap_or(end);
    let rest = end.strip_prefix("%}")?;
    Some(text.len() - rest.len())
}
