//! Text to tokens and back, whatever file the tokenizer comes from.

use std::ops::Range;

use serde_json::Value;

/// What can be wrong with a tokenizer.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct TokenizerError(pub String);

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

/// A base model's tokenizer.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    special: SpecialIds,
    /// Texts of the control tokens, longest first.
    control: Vec<(String, u32)>,
}

impl Tokenizer {
    /// From the bytes of a `tokenizer.json`, and what the model's configuration says of its special
    /// tokens.
    ///
    /// # Errors
    /// When it is no tokenizer that the `tokenizers` library reads.
    pub fn from_json(bytes: &[u8], special: SpecialIds) -> Result<Self, TokenizerError> {
        let mut inner = tokenizers::Tokenizer::from_bytes(bytes)
            .map_err(|error| TokenizerError(format!("the tokenizer cannot be read: {error}")))?;
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
        Ok(Self { inner, special, control })
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

    /// The first control token whose text `content` holds.
    pub fn control_token_in<'a>(&'a self, content: &str) -> Option<&'a str> {
        self.control.iter().map(|(text, _)| text.as_str()).find(|text| content.contains(text))
    }

    /// Texts and ids of the control tokens, longest first.
    pub fn control_tokens(&self) -> &[(String, u32)] {
        &self.control
    }

    /// The text of a token, as the vocabulary has it.
    pub fn text_of(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The special tokens.
    pub fn special(&self) -> &SpecialIds {
        &self.special
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

fn floor_char_boundary(text: &str, mut index: usize) -> usize {
    while !text.is_char_boundary(index) {
        index -= 1;
    }
    index
}

fn ceil_char_boundary(text: &str, mut index: usize) -> usize {
    while !text.is_char_boundary(index) {
        index += 1;
    }
    index
}

/// Builds the `tokenizer.json` of a byte-level BPE from the parts that a GGUF file keeps.
///
/// `pre` names the rule that cuts text into words before the merges; an unknown one is an error,
/// since a wrong rule gives wrong tokens without a sign.
pub fn byte_level_bpe(
    tokens: &[String],
    merges: &[String],
    control: &[u32],
    pre: &str,
) -> Result<Vec<u8>, TokenizerError> {
    let mut vocabulary = serde_json::Map::with_capacity(tokens.len());
    for (id, token) in tokens.iter().enumerate() {
        vocabulary.insert(token.clone(), id.into());
    }
    let mut pairs = Vec::with_capacity(merges.len());
    for merge in merges {
        let Some((left, right)) = merge.split_once(' ') else {
            return Err(TokenizerError(format!("the merge {merge:?} is not two tokens")));
        };
        pairs.push(serde_json::json!([left, right]));
    }
    let added: Vec<Value> = control
        .iter()
        .filter_map(|id| {
            let content = tokens.get(*id as usize)?;
            Some(serde_json::json!({
                "id": id, "content": content, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": true,
            }))
        })
        .collect();
    let byte_level = |use_regex: bool| {
        serde_json::json!({
            "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
            "use_regex": use_regex,
        })
    };
    let split = |pattern: &str| {
        serde_json::json!({
            "type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated",
            "invert": false,
        })
    };
    let parts = match pre {
        "gpt-2" | "default" => vec![byte_level(true)],
        "smollm" => {
            let digits = serde_json::json!({"type": "Digits", "individual_digits": true});
            vec![digits, byte_level(true)]
        }
        "llama-bpe" | "llama3" | "llama-v3" => vec![split(LLAMA3_WORDS), byte_level(false)],
        "qwen2" => vec![split(QWEN2_WORDS), byte_level(false)],
        _ => {
            return Err(TokenizerError(format!(
                "the pre-tokenizer {pre:?} is not known; hone knows gpt-2, smollm, llama-bpe and \
                 qwen2. Use the model's Hugging Face folder, whose tokenizer.json says how"
            )));
        }
    };
    let json = serde_json::json!({
        "version": "1.0",
        "added_tokens": added,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": parts},
        "decoder": byte_level(true),
        "model": {
            "type": "BPE", "vocab": vocabulary, "merges": pairs, "fuse_unk": false,
            "byte_fallback": false, "ignore_merges": pre.starts_with("llama"),
        },
    });
    serde_json::to_vec(&json).map_err(|error| TokenizerError(error.to_string()))
}

/// How Llama 3 cuts words, from its published `tokenizer.json`.
const LLAMA3_WORDS: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);

/// How Qwen 2 cuts words: as Llama 3, but digits one by one.
const QWEN2_WORDS: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);
