//! The chat completion object.

use serde::Serialize;
use utoipa::ToSchema;

use super::logprobs::ChoiceLogprobs;
use super::request::ChatReplyOptions;
use crate::domain::ids;
use crate::http::generation::collect::{Completion, GeneratedCompletions};
use crate::http::generation::format::CompletionMetadata;
use crate::http::generation::usage::Usage;
use crate::serve::{CalledTool, FinishReason};

/// `object: "chat.completion"`.
#[derive(Debug, Serialize, ToSchema)]
pub struct ChatCompletion {
    id: String,
    /// `chat.completion`.
    object: &'static str,
    /// Unix seconds.
    created: i64,
    model: String,
    choices: Vec<ChatChoice>,
    usage: Usage,
}

/// One answer.
#[derive(Debug, Serialize, ToSchema)]
pub struct ChatChoice {
    index: usize,
    message: ChatMessage,
    /// `stop`, `length`, `tool_calls` or, of a request with `functions`, `function_call`.
    finish_reason: &'static str,
    /// With `logprobs: true`.
    logprobs: Option<ChoiceLogprobs>,
}

/// What the model says.
#[derive(Debug, Serialize, ToSchema)]
pub struct ChatMessage {
    /// `assistant`.
    role: &'static str,
    /// Null when there is nothing but calls or reasoning.
    content: Option<String>,
    /// What the model thought before it answered, if it did.
    #[serde(skip_serializing_if = "String::is_empty")]
    reasoning_content: String,
    /// Always null.
    refusal: Option<String>,
    /// Calls of tools, if there are any.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<Call>,
    /// The same for a request with `functions`.
    #[serde(skip_serializing_if = "Option::is_none")]
    function_call: Option<FunctionCall>,
}

/// A call of a tool.
#[derive(Debug, Serialize, ToSchema)]
pub struct Call {
    /// What the tool's answer names.
    id: String,
    /// `function`.
    #[serde(rename = "type")]
    kind: &'static str,
    function: FunctionCall,
}

/// The function, and what with.
#[derive(Debug, Serialize, ToSchema)]
pub struct FunctionCall {
    name: String,
    /// JSON text, as the model wrote it: it need not fit the function's schema.
    arguments: String,
}

impl ChatCompletion {
    /// The reply with these completions.
    pub(super) fn new(
        metadata: CompletionMetadata,
        generated: GeneratedCompletions,
        options: ChatReplyOptions,
    ) -> Self {
        let CompletionMetadata { id, object, created, model } = metadata;
        let choices = generated.completions.into_iter().enumerate();
        let choices = choices.map(|(index, one)| ChatChoice::new(index, one, options));
        Self { id, object, created, model, choices: choices.collect(), usage: generated.usage }
    }
}

impl ChatChoice {
    fn new(index: usize, completion: Completion, options: ChatReplyOptions) -> Self {
        let has_more = !completion.calls.is_empty() || !completion.reasoning.is_empty();
        let is_absent = completion.text.is_empty() && has_more;
        let content = (!is_absent).then_some(completion.text);
        let mut calls = completion.calls;
        let function_call =
            if options.is_function { calls.pop().map(FunctionCall::of) } else { None };
        let message = ChatMessage {
            role: "assistant",
            content,
            reasoning_content: completion.reasoning,
            refusal: None,
            tool_calls: calls.into_iter().map(Call::of).collect(),
            function_call,
        };
        Self {
            index,
            message,
            finish_reason: finish_reason(completion.reason, options),
            logprobs: options.has_logprobs.then(|| ChoiceLogprobs::of(completion.tokens)),
        }
    }
}

impl Call {
    /// With an id of its own.
    pub(super) fn of(call: CalledTool) -> Self {
        Self { id: ids::new_tool_call_id(), kind: "function", function: FunctionCall::of(call) }
    }
}

impl FunctionCall {
    pub(super) fn of(call: CalledTool) -> Self {
        Self { name: call.name, arguments: call.arguments }
    }
}

/// OpenAI's name of a finish reason.
pub(super) fn finish_reason(reason: FinishReason, options: ChatReplyOptions) -> &'static str {
    match reason {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
        FinishReason::ToolCalls if options.is_function => "function_call",
        FinishReason::ToolCalls => "tool_calls",
    }
}
