//! Reads a chat request: what it asks for, and what hone does not offer.

use serde_json::{Value, json};

use crate::dataset::parse_messages;
use crate::http::error::{ApiError, ApiResult};
use crate::http::generation::{Fields, unsupported, wrong};
use crate::serve::{Prompt, Request};

/// Most of the likeliest tokens that are told at each place.
const MOST_LIKELIEST: u64 = 20;

/// What of a request decides how its reply looks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Style {
    /// Whether there are log-probabilities.
    pub has_logprobs: bool,
    /// Whether calls are `function_call`, the older spelling.
    pub is_function: bool,
}

/// Reads the body without its `model` and `stream`.
pub(super) fn read(fields: &Fields<'_>) -> ApiResult<(Request, Style)> {
    if fields.get("response_format").is_some_and(|format| format["type"] != "text") {
        let message = "hone answers in plain text only: leave response_format out";
        return Err(unsupported("response_format", message));
    }
    let wants_audio = fields.get("modalities").and_then(Value::as_array);
    if wants_audio.is_some_and(|kinds| kinds.iter().any(|kind| kind != "text")) {
        let message = "hone answers in text alone: leave modalities out";
        return Err(unsupported("modalities", message));
    }
    for key in ["audio", "web_search_options"] {
        if fields.get(key).is_some() {
            let message =
                format!("hone answers with the model alone, and offers no {key}: leave it out");
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
    let tools = tools(fields)?;
    let is_function = tools.is_empty() && fields.get("functions").is_some();
    let parallel_tool_calls = fields.switch_or("parallel_tool_calls", true)? && !is_function;
    let log_probabilities = log_probabilities(fields)?;
    let style = Style { has_logprobs: log_probabilities.is_some(), is_function };
    let tools = if is_function { functions(fields)? } else { tools };
    let request = Request {
        prompt: Prompt::Chat { messages, tools, parallel_tool_calls },
        sampling: fields.sampling()?,
        max_tokens: newer.or(older).map(|most| most as u32),
        seed: fields.seed()?,
        stop: fields.stop()?,
        n: fields.n()?,
        echo: false,
        log_probabilities,
    };
    Ok((request, style))
}

fn log_probabilities(fields: &Fields<'_>) -> ApiResult<Option<usize>> {
    let is_wanted = fields.switch_or("logprobs", false)?;
    let likeliest = fields.whole("top_logprobs", 0, MOST_LIKELIEST)?;
    if likeliest.is_some() && !is_wanted {
        let message = "top_logprobs needs \"logprobs\": true";
        return Err(ApiError::field("top_logprobs", message));
    }
    Ok(is_wanted.then_some(likeliest.unwrap_or_default() as usize))
}

/// The tools that the model is shown.
fn tools(fields: &Fields<'_>) -> ApiResult<Vec<Value>> {
    let tools = list(fields, "tools")?;
    for (index, tool) in tools.iter().enumerate() {
        if tool["type"] != "function" || !tool["function"]["name"].is_string() {
            let message = "a tool needs \"type\": \"function\" and a \"function\" with a \"name\"";
            return Err(ApiError::field(format!("tools[{index}]"), message));
        }
    }
    let is_shown = is_shown(fields, "tool_choice")?;
    Ok(if is_shown { tools.to_vec() } else { Vec::new() })
}

/// The same in the older spelling.
fn functions(fields: &Fields<'_>) -> ApiResult<Vec<Value>> {
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
    Ok(functions.iter().map(|one| json!({"type": "function", "function": one})).collect())
}

fn list<'a>(fields: &Fields<'a>, key: &str) -> ApiResult<&'a [Value]> {
    match fields.get(key) {
        None => Ok(&[]),
        Some(Value::Array(list)) => Ok(list),
        Some(other) => Err(wrong(key, other, "a list")),
    }
}

/// Whether tools are shown to the model. Nothing makes it call one.
fn is_shown(fields: &Fields<'_>, key: &str) -> ApiResult<bool> {
    match fields.get(key) {
        None => Ok(true),
        Some(Value::String(choice)) if choice == "auto" => Ok(true),
        Some(Value::String(choice)) if choice == "none" => Ok(false),
        Some(choice @ (Value::String(_) | Value::Object(_))) => {
            let message = format!(
                "{key} is {choice}; hone lets the model choose (\"auto\") or shows it no tools \
                 (\"none\"), and cannot make it call one"
            );
            Err(unsupported(key, &message))
        }
        Some(other) => Err(wrong(key, other, "\"auto\" or \"none\"")),
    }
}
