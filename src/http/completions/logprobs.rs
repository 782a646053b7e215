//! Log-probabilities in the shape of plain completions: a column for each thing that is known.

use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::http::generation::logprobs::{finite, token_text};
use crate::serve::ScoredToken;

/// What the model thought of each token: its own distribution, before temperature, penalties and
/// biases. The token that ends an answer is among them.
#[derive(Debug, Serialize, ToSchema)]
pub struct TextLogprobs {
    /// Texts of the tokens; bytes that are no whole characters are spelt out (`bytes:\xf0\x9f`).
    tokens: Vec<String>,
    /// Natural logarithms of their probabilities; null for the first token of an echoed prompt.
    token_logprobs: Vec<Option<f64>>,
    /// The likeliest tokens at each place and the one that stands there; null for the first token of
    /// an echoed prompt.
    #[schema(value_type = Vec<Option<Object>>)]
    top_logprobs: Vec<Option<Map<String, Value>>>,
    /// Where each token begins in the text, in characters.
    text_offset: Vec<usize>,
}

/// How OpenAI begins the spelling of bytes here.
const BYTES: &str = "bytes:";

impl TextLogprobs {
    /// Of these tokens.
    pub(super) fn of(tokens: Vec<ScoredToken>) -> Self {
        let mut columns = Self {
            tokens: Vec::with_capacity(tokens.len()),
            token_logprobs: Vec::with_capacity(tokens.len()),
            top_logprobs: Vec::with_capacity(tokens.len()),
            text_offset: Vec::with_capacity(tokens.len()),
        };
        for token in tokens {
            let text = token_text(&token.bytes, BYTES);
            let log_probability = token.log_probability.map(finite);
            columns.top_logprobs.push(log_probability.map(|own| {
                let mut top = Map::new();
                for likely in &token.likeliest {
                    // Two tokens of the same text: the likelier one stays.
                    top.entry(token_text(&likely.bytes, BYTES))
                        .or_insert_with(|| finite(likely.log_probability).into());
                }
                top.entry(text.clone()).or_insert_with(|| own.into());
                top
            }));
            columns.tokens.push(text);
            columns.token_logprobs.push(log_probability);
            columns.text_offset.push(token.offset);
        }
        columns
    }
}
