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
use crate::serve::Event;

/// Tokens read and written.
#[derive(Debug, Clone, Copy, Default, Serialize, ToSchema)]
pub struct Usage {
    /// Of the prompts.
    prompt_tokens: u64,
    /// Of all answers.
    completion_tokens: u64,
    /// Both.
    total_tokens: u64,
    prompt_tokens_details: PromptTokensDetails,
}

/// Tokens of the prompts by what they cost.
#[derive(Debug, Clone, Copy, Default, Serialize, ToSchema)]
pub struct PromptTokensDetails {
    /// Those that the model had read for an earlier request that begins alike.
    cached_tokens: u64,
}

impl Usage {
    /// Counts what an event tells of.
    fn count(&mut self, event: &Event) {
        match event {
            Event::Started { prompt_tokens } => self.prompt_tokens += prompt_tokens,
            Event::Reused { prompt_tokens } => {
                self.prompt_tokens_details.cached_tokens += prompt_tokens;
            }
            Event::Finished { completion_tokens, .. } => {
                self.completion_tokens += completion_tokens;
            }
            Event::Delta { .. } | Event::ToolCall { .. } | Event::Failed(_) => {}
        }
        self.total_tokens = self.prompt_tokens + self.completion_tokens;
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
