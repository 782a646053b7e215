//! Texts that look like control tokens and are none. A user may write `<s>` or `<|im_end|>`; the model must read
//! the letters, since only the chat template begins and ends turns. Such a text carries a mark inside, through the
//! template and up to the tokenizer, which takes the mark out and reads the text as letters.

use std::borrow::Cow;
use std::ops::Range;

use super::boundary::{ceil_char_boundary, floor_char_boundary};
use super::error::TokenizerError;

/// The mark inside a text that is spelled like a control token. A private-use character, which conversations may
/// not hold.
pub const ESCAPE: char = '\u{e004}';

/// Around a control token in what the letter-reading tokenizer is given: private-use characters as well.
const TOKEN_BEGINS: char = '\u{e005}';
const TOKEN_ENDS: char = '\u{e006}';

/// `text` with a mark behind the first character of whatever is spelled like one of `tokens` (longest first).
pub fn escape<'a>(text: &'a str, tokens: &[String]) -> Cow<'a, str> {
    if !tokens.iter().any(|token| text.contains(token.as_str())) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 8);
    for (at, character) in text.char_indices() {
        escaped.push(character);
        if tokens.iter().any(|token| text[at..].starts_with(token.as_str())) {
            escaped.push(ESCAPE);
        }
    }
    Cow::Owned(escaped)
}

/// A text without the marks.
pub fn unescape(text: &str) -> Cow<'_, str> {
    match text.contains(ESCAPE) {
        true => Cow::Owned(text.replace(ESCAPE, "")),
        false => Cow::Borrowed(text),
    }
}

/// A tokenizer that reads texts of control tokens as letters, and control tokens between two private-use
/// characters.
pub(super) struct LetterTokenizer {
    inner: tokenizers::Tokenizer,
    /// The control tokens as they stand between the characters, with the id that `inner` has for each and the id
    /// that the model knows.
    tokens: Vec<(String, u32, u32)>,
}

impl LetterTokenizer {
    /// Of `tokenizer`, whose control tokens are `control` (longest first).
    pub(super) fn of(
        tokenizer: &tokenizers::Tokenizer,
        control: &[(String, u32)],
    ) -> Result<Self, TokenizerError> {
        let failed = |reason: String| {
            TokenizerError(format!("the tokenizer cannot read control tokens as letters: {reason}"))
        };
        let mut file =
            serde_json::to_value(tokenizer).map_err(|error| failed(error.to_string()))?;
        let mut tokens = Vec::with_capacity(control.len());
        for added in file["added_tokens"].as_array_mut().into_iter().flatten() {
            let Some(text) = added["content"].as_str() else { continue };
            let Some((text, id)) = control.iter().find(|(token, _)| token == text) else {
                continue;
            };
            let wrapped = format!("{TOKEN_BEGINS}{text}{TOKEN_ENDS}");
            added["content"] = wrapped.clone().into();
            added["normalized"] = false.into();
            tokens.push((wrapped, *id));
        }
        let bytes = serde_json::to_vec(&file).map_err(|error| failed(error.to_string()))?;
        let inner =
            tokenizers::Tokenizer::from_bytes(&bytes).map_err(|error| failed(error.to_string()))?;
        let mut known = Vec::with_capacity(tokens.len());
        for (text, id) in tokens {
            let own =
                inner.token_to_id(&text).ok_or_else(|| failed(format!("{text:?} is lost")))?;
            known.push((text, own, id));
        }
        Ok(Self { inner, tokens: known })
    }

    /// Ids of a text and the byte range of it that each stands for; marked texts of `control` are letters.
    pub(super) fn encode(
        &self,
        text: &str,
        control: &[(String, u32)],
    ) -> Result<Vec<(u32, Range<usize>)>, TokenizerError> {
        let (marked, origins) = mark_tokens(text, control);
        let encoding = self
            .inner
            .encode(marked.as_str(), false)
            .map_err(|error| TokenizerError(format!("a text cannot be tokenised: {error}")))?;
        let origin = |at: usize| origins.get(at).copied().unwrap_or(text.len());
        let mut tokens = Vec::with_capacity(encoding.get_ids().len());
        for (id, (start, end)) in encoding.get_ids().iter().zip(encoding.get_offsets()) {
            let start = floor_char_boundary(text, origin(*start));
            let range = start..ceil_char_boundary(text, origin(*end));
            let id = match self.tokens.iter().find(|(_, own, _)| own == id) {
                Some((_, _, known)) => *known,
                None if control.iter().any(|(_, known)| known == id) => {
                    let found = unescape(&text[range]).into_owned();
                    return Err(TokenizerError(format!(
                        "the model's tokenizer knows {found:?} as a control token only: remove it or write \
                         it differently"
                    )));
                }
                None => *id,
            };
            tokens.push((id, range));
        }
        Ok(tokens)
    }
}

/// `text` without the marks, its control tokens between two characters; and for each byte of that, and its end,
/// where it stands in `text`.
fn mark_tokens(text: &str, control: &[(String, u32)]) -> (String, Vec<usize>) {
    let mut marked = String::with_capacity(text.len() + 64);
    let mut origins: Vec<usize> = Vec::with_capacity(text.len() + 64);
    let mut push = |character: char, at: usize| {
        marked.push(character);
        origins.resize(marked.len(), at);
        // Bytes inside of a character have places of their own.
        let first = marked.len() - character.len_utf8();
        if character != TOKEN_BEGINS && character != TOKEN_ENDS {
            (0..character.len_utf8()).for_each(|byte| origins[first + byte] = at + byte);
        }
    };
    let mut at = 0;
    while let Some(character) = text[at..].chars().next() {
        // Marks that were not written here would make a token of a text.
        if [ESCAPE, TOKEN_BEGINS, TOKEN_ENDS].contains(&character) {
            at += character.len_utf8();
            continue;
        }
        let token = control.iter().find(|(token, _)| text[at..].starts_with(token.as_str()));
        let Some((token, _)) = token else {
            push(character, at);
            at += character.len_utf8();
            continue;
        };
        push(TOKEN_BEGINS, at);
        token.char_indices().for_each(|(within, character)| push(character, at + within));
        at += token.len();
        push(TOKEN_ENDS, at);
    }
    origins.push(text.len());
    (marked, origins)
}
