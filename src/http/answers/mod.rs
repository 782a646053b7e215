//! What chat and plain completions share: the model, the fields that say how it answers, the events
//! of an answer as a whole or as a stream.

mod fields;
pub(super) mod schema;
mod source;
mod stream;
mod whole;

use serde::Serialize;
use utoipa::ToSchema;

pub(super) use self::fields::{Fields, MOST_PROMPTS, unsupported, wrong};
pub(super) use self::source::source;
pub(super) use self::stream::{Choices, Envelope, stream};
pub(super) use self::whole::{WholeAnswer, collect};

/// Tokens read and written.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
pub struct Usage {
    /// Of the prompts.
    prompt_tokens: u64,
    /// Of all answers.
    completion_tokens: u64,
    /// Both.
    total_tokens: u64,
}

impl Usage {
    /// The sum of both.
    pub(super) fn new(prompt_tokens: u64, completion_tokens: u64) -> Self {
        let total_tokens = prompt_tokens + completion_tokens;
        Self { prompt_tokens, completion_tokens, total_tokens }
    }
}

/// The bytes of a token as JSON can say them: those that are no whole characters are spelt out after
/// `prefix`, as OpenAI does.
pub(super) fn token_text(bytes: &[u8], prefix: &str) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => {
            let escaped = bytes.iter().map(|byte| format!("\\x{byte:02x}"));
            format!("{prefix}{}", escaped.collect::<String>())
        }
    }
}

/// A logarithm of a probability as JSON can say it: OpenAI writes -9999 for what cannot come.
pub(super) fn finite(log_probability: f64) -> f64 {
    if log_probability.is_finite() { log_probability } else { -9999.0 }
}
