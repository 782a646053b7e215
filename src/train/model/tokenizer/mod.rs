//! Text to tokens and back, whatever file the tokenizer comes from.

mod boundary;
mod bytes;
mod encode_escaped;
mod error;
mod escape;
mod growth;

use std::collections::HashMap;
use std::ops::Range;
use std::sync::OnceLock;

use self::boundary::{ceil_char_boundary, floor_char_boundary};
use self::bytes::Spelling;
pub use self::error::TokenizerError;
use self::escape::LetterTokenizer;
pub use self::escape::{ESCAPE, escape, unescape};
use self::growth::refuse_growth;

/// Ids of the tokens with a meaning of their own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SpecialIds {
    /// Begins a text.
    pub beginning: Option<u32>,
    /// Ends a text: the first one is appended to completions, generation stops at each.
    pub ends: Vec<u32>,
    /// Whether plain texts (not chats, whose templates say it) begin with `beginning`.
    pub adds_beginning: bool,
}

impl SpecialIds {
    /// What a text follows that has nothing before it: the beginning of a text, or the end of another one.
    pub fn before_first(&self) -> Option<u32> {
        self.beginning.or(self.ends.first().copied())
    }
}

/// A base model's tokenizer.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    special: SpecialIds,
    /// Texts of the control tokens, longest first.
    control: Vec<(String, u32)>,
    /// Texts of tokens beside the vocabulary, control tokens among them.
    added: HashMap<u32, String>,
    spelling: Spelling,
    /// The token that the tokenizer's own file puts before every text.
    put_first: Option<u32>,
    /// Made when a text first needs it.
    letters: OnceLock<Result<LetterTokenizer, TokenizerError>>,
}

impl Tokenizer {
    /// From the bytes of a `tokenizer.json`, and what the model's configuration says of its special
    /// tokens.
    ///
    /// # Errors
    /// When it is no tokenizer that the `tokenizers` library reads.
    pub fn from_json(bytes: &[u8], special: SpecialIds) -> Result<Self, TokenizerError> {
        refuse_growth(bytes)?;
        let mut inner = tokenizers::Tokenizer::from_bytes(bytes)
            .map_err(|error| TokenizerError(format!("the tokenizer cannot be read: {error}")))?;
        let put_first = put_first(&inner);
        // Post-processors add special tokens, which templates write themselves, and trim the spaces
        // off offsets, which the loss mask needs exact.
        inner.with_post_processor(None::<tokenizers::PostProcessorWrapper>);
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|error| {
            TokenizerError(format!("truncation cannot be switched off: {error}"))
        })?;
        let mut control: Vec<(String, u32)> = inner
            .get_added_tokens_decoder()
            .into_iter()
            .filter(|(_, token)| token.special && !token.content.is_empty())
            .map(|(id, token)| (token.content, id))
            .collect();
        control.sort_by(|a, b| b.0.len().cmp(&a.0.len()).then_with(|| a.cmp(b)));
        let added = inner.get_added_tokens_decoder().into_iter();
        let added = added.map(|(id, token)| (id, token.content)).collect();
        let spelling = Spelling::of(inner.get_decoder());
        let letters = OnceLock::new();
        Ok(Self { inner, special, control, added, spelling, put_first, letters })
    }

    /// Token ids and the byte range of `text` that each stands for; tokens that share the bytes of
    /// one character have the whole character. Adds no special tokens; texts of control tokens
    /// become control tokens.
    pub fn encode(&self, text: &str) -> Result<Vec<(u32, Range<usize>)>, TokenizerError> {
        let encoding = self
            .inner
            .encode(text, false)
            .map_err(|error| TokenizerError(format!("a text cannot be tokenised: {error}")))?;
        let offsets = encoding.get_offsets();
        let ids = encoding.get_ids();
        let mut tokens = Vec::with_capacity(ids.len());
        for (id, (start, end)) in ids.iter().zip(offsets) {
            let start = floor_char_boundary(text, *start);
            let end = ceil_char_boundary(text, *end);
            tokens.push((*id, start..end));
        }
        Ok(tokens)
    }

    /// Text of tokens, control tokens left out.
    pub fn decode(&self, ids: &[u32]) -> Result<String, TokenizerError> {
        self.inner
            .decode(ids, true)
            .map_err(|error| TokenizerError(format!("tokens cannot be decoded: {error}")))
    }

    /// The bytes that a token stands for in the middle of a text, which need not be whole characters;
    /// of a control token its text, and none of an id that no token has.
    pub fn bytes_of(&self, id: u32) -> Vec<u8> {
        if let Some(text) = self.added.get(&id) {
            return text.clone().into_bytes();
        }
        let piece = self.inner.id_to_token(id);
        piece.map_or_else(Vec::new, |piece| self.spelling.bytes(&piece))
    }

    /// The same where the token begins a text: some tokenizers put a space before every word, and
    /// leave out that of the first one.
    pub fn bytes_of_first(&self, id: u32) -> Vec<u8> {
        let mut bytes = self.bytes_of(id);
        let is_left_out = bytes.first() == Some(&b' ')
            && self.decode(&[id]).is_ok_and(|text| !text.starts_with(' '));
        if is_left_out {
            bytes.remove(0);
        }
        bytes
    }

    /// Whether a token has a meaning of its own instead of a text.
    pub fn is_control(&self, id: u32) -> bool {
        self.control.iter().any(|(_, control)| *control == id)
    }

    /// Texts and ids of the control tokens, longest first.
    pub fn control_tokens(&self) -> &[(String, u32)] {
        &self.control
    }

    /// Texts and ids of the tokens beside the vocabulary, control tokens among them, in no order.
    pub fn added_tokens(&self) -> impl Iterator<Item = (&str, u32)> {
        self.added.iter().map(|(id, text)| (text.as_str(), *id))
    }

    /// The text of a token, as the vocabulary has it.
    pub fn text_of(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The special tokens.
    pub fn special(&self) -> &SpecialIds {
        &self.special
    }

    /// Lets plain texts begin with the beginning-of-text token if the tokenizer's own file puts it
    /// there: so it is where no configuration says otherwise.
    pub fn begin_texts_as_its_file_says(&mut self) {
        self.special.adds_beginning =
            self.put_first.is_some() && self.put_first == self.special.beginning;
    }

    /// Adds a token at which generation stops, such as the template's end of turn.
    pub fn add_stop(&mut self, id: u32) {
        if !self.special.ends.contains(&id) {
            self.special.ends.push(id);
        }
    }

    /// The tokens at which generation stops.
    pub fn stop_ids(&self) -> &[u32] {
        &self.special.ends
    }
}

/// The token that a post-processor puts before a text, if it does.
fn put_first(tokenizer: &tokenizers::Tokenizer) -> Option<u32> {
    let first = |with_special: bool| {
        // What cannot read a single letter puts nothing before it.
        let encoding = tokenizer.encode("a", with_special).ok()?;
        encoding.get_ids().first().copied()
    };
    first(true).filter(|id| Some(*id) != first(false))
}
