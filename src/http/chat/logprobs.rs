//! Log-probabilities in the shape of chat.

use serde::Serialize;
use utoipa::ToSchema;

use crate::http::generation::logprobs::{finite, token_text};
use crate::serve::ScoredToken;

/// What the model thought of each token of an answer: its own distribution, before temperature,
/// penalties and biases.
#[derive(Debug, Serialize, ToSchema)]
pub struct ChoiceLogprobs {
    /// One for each token, those of tool calls among them, the one that ends the turn left out.
    content: Vec<TokenLogprob>,
    /// Always null.
    refusal: Option<Vec<TokenLogprob>>,
}

/// A token.
#[derive(Debug, Serialize, ToSchema)]
pub struct TokenLogprob {
    /// Its text; bytes that are no whole characters are spelt out (`\xf0\x9f`).
    token: String,
    /// Natural logarithm of its probability.
    logprob: f64,
    /// Its bytes.
    bytes: Vec<u8>,
    /// The likeliest tokens at its place.
    top_logprobs: Vec<TopLogprob>,
}

/// A token that might have come.
#[derive(Debug, Serialize, ToSchema)]
pub struct TopLogprob {
    /// Its text.
    token: String,
    /// Natural logarithm of its probability.
    logprob: f64,
    /// Its bytes.
    bytes: Vec<u8>,
}

impl ChoiceLogprobs {
    /// Of these tokens.
    pub(super) fn of(tokens: Vec<ScoredToken>) -> Self {
        let tokens = tokens.into_iter().filter(|token| !token.is_end);
        let content = tokens.map(|token| TokenLogprob {
            token: token_text(&token.bytes, ""),
            logprob: finite(token.log_probability.unwrap_or(f64::NEG_INFINITY)),
            bytes: token.bytes,
            top_logprobs: token
                .likeliest
                .into_iter()
                .map(|likely| TopLogprob {
                    token: token_text(&likely.bytes, ""),
                    logprob: finite(likely.log_probability),
                    bytes: likely.bytes,
                })
                .collect(),
        });
        Self { content: content.collect(), refusal: None }
    }
}
