//! Reads a chat request, and refuses what hone does not support.

use serde_json::Value;

use crate::dataset::{drop_schema_nulls, parse_messages, tool_of_function};
use crate::http::error::{ApiError, ApiResult};
use crate::http::extract::ExactJsonObject;
use crate::http::generation::fields::{GenerationFields, unsupported, wrong};
use crate::serve::{Prompt, Request, TemplateOverrides};
use crate::util::exact_json::ExactJson;
use crate::util::excerpt::excerpt_of;
use crate::validate::chat_template;

/// The fields of the body.
pub(in crate::http) const FIELDS: &[&str] = &[
    "model",
    "messages",
    "max_completion_tokens",
    "max_tokens",
    "temperature",
    "top_p",
    "seed",
    "stop",
    "n",
    "frequency_penalty",
    "presence_penalty",
    "logit_bias",
    "logprobs",
    "top_logprobs",
    "stream",
    "stream_options",
    "prompt_cache_key",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "functions",
    "function_call",
    "response_format",
    "modalities",
    "chat_template",
    "chat_template_kwargs",
    "chat_template_date",
    "reasoning_effort",
];

/// The field for how long a model reasons, and the variable of templates.
const REASONING_EFFORT: &str = "reasoning_effort";

/// Most alternatives of a token that `top_logprobs` may request.
const MOST_LIKELIEST: u64 = 20;

/// What the reply to a request must hold.
#[derive(Debug, Clone, Copy)]
pub(super) struct ChatReplyOptions {
    /// Whether log-probabilities were requested.
    pub has_logprobs: bool,
    /// Whether tool calls are `function_call`, the older spelling.
    pub is_function: bool,
}

/// Reads the body without its `model` and `stream`.
pub(super) fn read(
    fields: &GenerationFields<'_>,
    body: &ExactJsonObject,
) -> ApiResult<(Request, ChatReplyOptions)> {
    if fields.get("response_format").is_some_and(|format| format["type"] != "text") {
        let message = "hone generates plain text only: leave response_format out";
        return Err(unsupported("response_format", message));
    }
    let modalities = fields.get("modalities").and_then(Value::as_array);
    if modalities.is_some_and(|kinds| kinds.iter().any(|kind| kind != "text")) {
        let message = "hone generates text only: leave modalities out";
        return Err(unsupported("modalities", message));
    }
    for key in ["audio", "web_search_options"] {
        if fields.0.get_unsupported(key).is_some() {
            let message = format!("hone does not support {key}: leave it out");
            return Err(unsupported(key, &message));
        }
    }
    let messages =
        fields.get("messages").ok_or_else(|| ApiError::field("messages", "messages is missing"))?;
    let messages = parse_messages(messages).map_err(|problem| {
        let param = problem.key.clone().unwrap_or_else(|| "messages".to_owned());
        ApiError::field(param, problem.message)
    })?;
    let most = u64::from(u32::MAX);
    let newer = fields.whole("max_completion_tokens", 1, most)?;
    let older = fields.whole("max_tokens", 1, most)?;
    let tools = tools(fields, body)?;
    let is_function = tools.is_empty() && fields.get("functions").is_some();
    let parallel_tool_calls = fields.switch_or("parallel_tool_calls", true)? && !is_function;
    let log_probabilities = log_probabilities(fields)?;
    let options = ChatReplyOptions { has_logprobs: log_probabilities.is_some(), is_function };
    let tools = if is_function { functions(fields, body)? } else { tools };
    let request = Request {
        prompt: Prompt::Chat {
            messages,
            tools,
            parallel_tool_calls,
            template: template_overrides(fields)?,
        },
        sampling: fields.sampling()?,
        max_tokens: newer.or(older).map(|most| most as u32),
        seed: fields.seed()?,
        stop: fields.stop()?,
        n: fields.n()?,
        echo: false,
        log_probabilities,
    };
    Ok((request, options))
}

/// What the request says of the chat template.
fn template_overrides(fields: &GenerationFields<'_>) -> ApiResult<TemplateOverrides> {
    let mut kwargs = chat_template::kwargs(&fields.0)?;
    // OpenAI's field: templates read it under its own name.
    if let Some(effort) = fields.0.text(REASONING_EFFORT)? {
        kwargs.entry(REASONING_EFFORT).or_insert(effort.into());
    }
    Ok(TemplateOverrides {
        name: fields.0.text("chat_template")?,
        kwargs,
        date: chat_template::date_of_request(&fields.0)?,
    })
}

fn log_probabilities(fields: &GenerationFields<'_>) -> ApiResult<Option<usize>> {
    let is_wanted = fields.switch_or("logprobs", false)?;
    let likeliest = fields.whole("top_logprobs", 0, MOST_LIKELIEST)?;
    if likeliest.is_some() && !is_wanted {
        let message = "top_logprobs needs \"logprobs\": true";
        return Err(ApiError::field("top_logprobs", message));
    }
    Ok(is_wanted.then_some(likeliest.unwrap_or_default() as usize))
}

/// The tools that the prompt shows to the model.
fn tools(fields: &GenerationFields<'_>, body: &ExactJsonObject) -> ApiResult<Vec<ExactJson>> {
    let tools = list(fields, "tools")?;
    for (index, tool) in tools.iter().enumerate() {
        if tool["type"] != "function" || !tool["function"]["name"].is_string() {
            let message = "a tool needs \"type\": \"function\" and a \"function\" with a \"name\"";
            return Err(ApiError::field(format!("tools[{index}]"), message));
        }
    }
    let is_shown = is_shown(fields, "tool_choice")?;
    if !is_shown {
        return Ok(Vec::new());
    }
    Ok(body.exact_list("tools")?.into_iter().map(without_nulls).collect())
}

/// A tool as training shows it to the model.
fn without_nulls(mut tool: ExactJson) -> ExactJson {
    drop_schema_nulls(&mut tool, "tools");
    tool
}

/// The tools in the older spelling.
fn functions(fields: &GenerationFields<'_>, body: &ExactJsonObject) -> ApiResult<Vec<ExactJson>> {
    let functions = list(fields, "functions")?;
    for (index, function) in functions.iter().enumerate() {
        if !function["name"].is_string() {
            let message = "a function needs a \"name\"";
            return Err(ApiError::field(format!("functions[{index}]"), message));
        }
    }
    if !is_shown(fields, "function_call")? {
        return Ok(Vec::new());
    }
    let functions = body.exact_list("functions")?.into_iter();
    Ok(functions.map(without_nulls).map(tool_of_function).collect())
}

fn list<'a>(fields: &GenerationFields<'a>, key: &str) -> ApiResult<&'a [Value]> {
    match fields.get(key) {
        None => Ok(&[]),
        Some(Value::Array(list)) => Ok(list),
        Some(other) => Err(wrong(key, other, "a list")),
    }
}

/// Whether the prompt shows the tools to the model. hone cannot force a call.
fn is_shown(fields: &GenerationFields<'_>, key: &str) -> ApiResult<bool> {
    match fields.get(key) {
        None => Ok(true),
        Some(Value::String(choice)) if choice == "auto" => Ok(true),
        Some(Value::String(choice)) if choice == "none" => Ok(false),
        Some(choice @ (Value::String(_) | Value::Object(_))) => {
            let choice = excerpt_of(choice);
            let message = format!(
                "{key} is {choice}; hone lets the model choose (\"auto\") or shows it no tools \
                 (\"none\"), and cannot make it call one"
            );
            Err(unsupported(key, &message))
        }
        Some(other) => Err(wrong(key, other, "\"auto\" or \"none\"")),
    }
}
