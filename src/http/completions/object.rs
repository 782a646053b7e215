//! A reply as OpenAI shows it.

use serde::Serialize;
use utoipa::ToSchema;

use super::logprobs::TextLogprobs;
use crate::http::generation::{Envelope, Usage, WholeAnswer};
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
    /// Of these answers.
    pub(super) fn new(
        envelope: Envelope,
        answers: Vec<WholeAnswer>,
        usage: Usage,
        has_logprobs: bool,
    ) -> Self {
        let Envelope { id, object, created, model } = envelope;
        let choices = answers.into_iter().enumerate().map(|(index, answer)| TextChoice {
            text: answer.text,
            index,
            logprobs: has_logprobs.then(|| TextLogprobs::of(answer.tokens)),
            finish_reason: finish_reason(answer.reason),
        });
        Self { id, object, created, model, choices: choices.collect(), usage }
    }
}

/// OpenAI's word.
pub(super) fn finish_reason(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Length => "length",
        FinishReason::Stop | FinishReason::ToolCalls => "stop",
    }
}
