//! What a client sends, for the OpenAPI document.

use serde_json::Value;
use utoipa::ToSchema;

use crate::dataset::Role;
use crate::http::generation::schema::{LogitBias, StopTexts, StreamOptions};

/// A conversation to continue. Other fields of OpenAI's are ignored, except `audio` and
/// `web_search_options`, which are refused.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes the body for the OpenAPI document")]
pub struct CreateChatCompletion {
    /// Base model, `ft:…` or checkpoint.
    model: String,
    /// The conversation.
    #[schema(min_items = 1)]
    messages: Vec<ChatMessageBody>,
    /// Most tokens of an answer; else until the context is full.
    #[schema(minimum = 1, maximum = 4294967295i64)]
    max_completion_tokens: Option<i64>,
    /// The older spelling.
    #[schema(minimum = 1, maximum = 4294967295i64)]
    max_tokens: Option<i64>,
    /// 0 is greedy; default 1.
    #[schema(minimum = 0, maximum = 2)]
    temperature: Option<f64>,
    /// Nucleus; default 1.
    #[schema(minimum = 0, maximum = 1)]
    top_p: Option<f64>,
    /// The same seed gives the same completion.
    seed: Option<i64>,
    /// Stop sequences, which are not part of the completion.
    #[schema(value_type = Option<StopTexts>, inline)]
    stop: Option<Value>,
    /// How many answers; default 1.
    #[schema(minimum = 1, maximum = 8)]
    n: Option<u32>,
    /// Taken off a token's logit for each time that the answer has it.
    #[schema(minimum = -2, maximum = 2)]
    frequency_penalty: Option<f64>,
    /// Taken off once if the answer has it.
    #[schema(minimum = -2, maximum = 2)]
    presence_penalty: Option<f64>,
    /// Added to the logits of tokens; -100 bans one.
    #[schema(value_type = Option<LogitBias>, inline)]
    logit_bias: Option<Value>,
    /// Whether each token comes with its log-probability.
    logprobs: Option<bool>,
    /// How many alternatives come with each token; needs `logprobs`.
    #[schema(minimum = 0, maximum = 20)]
    top_logprobs: Option<u32>,
    /// Server-sent events instead of one reply: chunks, then `[DONE]`.
    stream: Option<bool>,
    /// Needs `stream`.
    stream_options: Option<StreamOptions>,
    /// Requests share computed prefixes of prompts only with those of the same project and the same key.
    #[schema(max_length = 512)]
    prompt_cache_key: Option<String>,
    /// JSON schemas of functions, for models whose templates show them.
    tools: Option<Vec<ToolBody>>,
    /// `auto` shows the tools to the model, `none` does not; nothing makes it call one.
    tool_choice: Option<ToolChoice>,
    /// Whether one answer may call several tools; default true.
    parallel_tool_calls: Option<bool>,
    /// The older spelling of `tools`: a list of functions, read when there are no tools.
    functions: Option<Value>,
    /// The older spelling of `tool_choice`, read together with `functions`.
    function_call: Option<Value>,
    /// Plain text is the only format.
    response_format: Option<ResponseFormat>,
    /// A list of `text`; other modalities are refused.
    modalities: Option<Value>,
    /// Extension of hone: which of the model's chat templates, by its name; transformers' choice without it.
    chat_template: Option<String>,
    /// Extension of hone, and of vLLM and SGLang: variables of the chat template, such as
    /// `{"enable_thinking": false}`. Each goes before the one of that name of the job that made the model.
    #[schema(value_type = Option<Object>)]
    chat_template_kwargs: Option<Value>,
    /// Extension of hone: the day that a template writes as today's, `YYYY-MM-DD` or `today`; without it the
    /// day that the job set, else today.
    chat_template_date: Option<String>,
    /// Handed to the chat template as `reasoning_effort`.
    reasoning_effort: Option<String>,
}

/// A message; more in OpenAI's reference.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes the body for the OpenAPI document")]
struct ChatMessageBody {
    role: Role,
    content: Option<Content>,
    name: Option<String>,
}

/// A text, or parts of it.
#[derive(ToSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "describes the body for the OpenAPI document")]
enum Content {
    Text(String),
    Parts(Vec<ContentPart>),
}

/// A part of a message.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes the body for the OpenAPI document")]
struct ContentPart {
    #[schema(rename = "type")]
    kind: TextKind,
    text: String,
}

/// The only kind of part and of format.
#[derive(ToSchema)]
#[schema(rename_all = "lowercase")]
#[expect(dead_code, reason = "describes the body for the OpenAPI document")]
enum TextKind {
    Text,
}

/// A tool.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes the body for the OpenAPI document")]
struct ToolBody {
    #[schema(rename = "type")]
    kind: ToolKind,
    function: FunctionBody,
}

/// The only kind of tool.
#[derive(ToSchema)]
#[schema(rename_all = "lowercase")]
#[expect(dead_code, reason = "describes the body for the OpenAPI document")]
enum ToolKind {
    Function,
}

/// A function; its description and parameters go to the template as they are.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes the body for the OpenAPI document")]
struct FunctionBody {
    name: String,
}

/// Whether tools are shown.
#[derive(ToSchema)]
#[schema(rename_all = "lowercase")]
#[expect(dead_code, reason = "describes the body for the OpenAPI document")]
enum ToolChoice {
    Auto,
    None,
}

/// In what an answer is written.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes the body for the OpenAPI document")]
struct ResponseFormat {
    #[schema(rename = "type")]
    kind: TextKind,
}
