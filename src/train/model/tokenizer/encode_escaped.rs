//! Encodes what a template has written: its control tokens as tokens, and texts that are spelled like them as letters.

use std::ops::Range;

use super::Tokenizer;
use super::error::TokenizerError;
use super::escape::{ESCAPE, LetterTokenizer};

impl Tokenizer {
    /// As [`Tokenizer::encode`]. Texts with a mark inside, made by [`escape`], are read as letters; ranges are
    /// those of `text`, marks among it.
    ///
    /// # Errors
    /// [`TokenizerError`] where the tokenizer makes a control token of the letters all the same.
    pub fn encode_escaped(&self, text: &str) -> Result<Vec<(u32, Range<usize>)>, TokenizerError> {
        if !text.contains(ESCAPE) {
            return self.encode(text);
        }
        let control = self.turn_tokens();
        let made = self.letters.get_or_init(|| LetterTokenizer::of(&self.inner, &control));
        let letters = made.as_ref().map_err(Clone::clone)?;
        letters.encode(text, &control)
    }

    /// Ids of a text that goes on behind another one: a tokenizer that puts a space before every text puts none here.
    ///
    /// # Errors
    /// As [`Tokenizer::encode_escaped`]; and where the tokenizer cannot begin in the middle of a text.
    pub fn encode_continuation(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let ids = |tokens: &[(u32, Range<usize>)]| tokens.iter().map(|(id, _)| *id).collect();
        let puts_space =
            self.encode("a")?.first().is_some_and(|(id, _)| self.bytes_of(*id).starts_with(b" "));
        if !puts_space {
            return Ok(ids(&self.encode_escaped(text)?));
        }
        // Such tokenizers read a line break as a token of its own.
        let tokens = self.encode_escaped(&format!("\n{text}"))?;
        match tokens.iter().position(|(_, range)| range.end == 1) {
            Some(last) => Ok(ids(&tokens[last + 1..])),
            None => Err(TokenizerError(
                "the prompt and the answer share a token, and the tokenizer cannot part them"
                    .to_owned(),
            )),
        }
    }

    /// Texts and ids of the tokens that only a template may write: control tokens, and those at which generation
    /// stops; longest first.
    pub fn turn_tokens(&self) -> Vec<(String, u32)> {
        let mut tokens = self.control.clone();
        for id in &self.special.ends {
            if let Some(text) = self.added.get(id)
                && !tokens.iter().any(|(_, known)| known == id)
            {
                tokens.push((text.clone(), *id));
            }
        }
        tokens.sort_by(|a, b| b.0.len().cmp(&a.0.len()).then_with(|| a.cmp(b)));
        tokens
    }
}
