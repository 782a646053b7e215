//! Token counts of a request.

use serde::Serialize;
use utoipa::ToSchema;

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
    completion_tokens_details: CompletionTokensDetails,
}

/// Tokens of the prompts by what they cost.
#[derive(Debug, Clone, Copy, Default, Serialize, ToSchema)]
pub struct PromptTokensDetails {
    /// Those that the model had read for an earlier request that begins alike.
    cached_tokens: u64,
}

/// Tokens of the answers by what they are.
#[derive(Debug, Clone, Copy, Default, Serialize, ToSchema)]
pub struct CompletionTokensDetails {
    /// Those with which the model thought before it answered.
    reasoning_tokens: u64,
}

impl Usage {
    /// Adds the tokens of an event.
    pub(super) fn count(&mut self, event: &Event) {
        match event {
            Event::Started { prompt_tokens } => self.prompt_tokens += prompt_tokens,
            Event::PrefixCacheHit { prompt_tokens } => {
                self.prompt_tokens_details.cached_tokens += prompt_tokens;
            }
            Event::Finished { completion_tokens, reasoning_tokens, .. } => {
                self.completion_tokens += completion_tokens;
                self.completion_tokens_details.reasoning_tokens += reasoning_tokens;
            }
            Event::Delta { .. }
            | Event::Reasoning { .. }
            | Event::ToolCall { .. }
            | Event::Failed(_) => {}
        }
        self.total_tokens = self.prompt_tokens + self.completion_tokens;
    }
}
