//! The completion object.

use serde::Serialize;
use utoipa::ToSchema;

use super::logprobs::TextLogprobs;
use crate::http::generation::collect::GeneratedCompletions;
use crate::http::generation::format::CompletionMetadata;
use crate::http::generation::usage::Usage;
use crate::serve::FinishReason;

/// `object: "text_completion"`.
#[derive(Debug, Serialize, ToSchema)]
pub struct TextCompletion {
    id: String,
    /// `text_completion`.
    object: &'static str,
    /// Unix seconds.
    created: i64,
    model: String,
    /// Those to the first prompt come first.
    choices: Vec<TextChoice>,
    usage: Usage,
}

/// One answer.
#[derive(Debug, Serialize, ToSchema)]
pub struct TextChoice {
    text: String,
    index: usize,
    /// With `logprobs`.
    logprobs: Option<TextLogprobs>,
    /// `stop` or `length`.
    finish_reason: &'static str,
}

impl TextCompletion {
    /// The reply with these completions.
    pub(super) fn new(
        metadata: CompletionMetadata,
        generated: GeneratedCompletions,
        has_logprobs: bool,
    ) -> Self {
        let CompletionMetadata { id, object, created, model } = metadata;
        let choices = generated.completions.into_iter().enumerate();
        let choices = choices.map(|(index, completion)| TextChoice {
            text: completion.text,
            index,
            logprobs: has_logprobs.then(|| TextLogprobs::of(completion.tokens)),
            finish_reason: finish_reason(completion.reason),
        });
        Self { id, object, created, model, choices: choices.collect(), usage: generated.usage }
    }
}

/// OpenAI's name of a finish reason.
pub(super) fn finish_reason(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Length => "length",
        FinishReason::Stop | FinishReason::ToolCalls => "stop",
    }
}
