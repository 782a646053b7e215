//! Reads a chat request: what it asks for, and what hone does not offer.

use serde_json::{Map, Value};

use crate::dataset::parse_messages;
use crate::error_code::ErrorCode;
use crate::http::error::{ApiError, ApiResult};
use crate::serve::ChatRequest;

/// Most answers to one request.
const MOST_CHOICES: u64 = 8;

/// Most stop texts.
const MOST_STOPS: usize = 4;

/// Reads the body without its `model`.
pub(super) fn read(body: &Map<String, Value>) -> ApiResult<ChatRequest> {
    let given = |key: &str| body.get(key).filter(|value| !value.is_null());
    refuse_what_is_not_offered(&given)?;
    let messages =
        given("messages").ok_or_else(|| ApiError::field("messages", "messages is missing"))?;
    let messages = parse_messages(messages).map_err(|problem| {
        let param = problem.key.clone().unwrap_or_else(|| "messages".to_owned());
        ApiError::field(param, problem.message)
    })?;
    let max_tokens = match given("max_completion_tokens") {
        Some(value) => Some(whole("max_completion_tokens", value, u64::from(u32::MAX))?),
        None => match given("max_tokens") {
            Some(value) => Some(whole("max_tokens", value, u64::from(u32::MAX))?),
            None => None,
        },
    };
    Ok(ChatRequest {
        messages,
        tools: tools(given("tools"))?,
        max_tokens: max_tokens.map(|most| most as u32),
        temperature: number("temperature", given("temperature"), 0.0, 2.0)?.unwrap_or(1.0),
        top_p: number("top_p", given("top_p"), 0.0, 1.0)?.unwrap_or(1.0),
        seed: seed(given("seed"))?,
        stop: stop(given("stop"))?,
        n: match given("n") {
            Some(value) => whole("n", value, MOST_CHOICES)? as u32,
            None => 1,
        },
    })
}

/// Features that would change the answer must not be ignored in silence.
fn refuse_what_is_not_offered<'a>(given: &impl Fn(&str) -> Option<&'a Value>) -> ApiResult<()> {
    let refuse = |param: &str, message: &str| {
        Err(ApiError::new(ErrorCode::Unsupported, message).with_param(param))
    };
    if given("stream").is_some_and(|value| *value != false) {
        return refuse("stream", "hone does not stream answers yet: send \"stream\": false");
    }
    if given("logprobs").is_some_and(|value| *value != false) || given("top_logprobs").is_some() {
        return refuse("logprobs", "hone does not return log probabilities yet");
    }
    if given("response_format").is_some_and(|format| format["type"] != "text") {
        return refuse("response_format", "hone answers in plain text only");
    }
    for key in ["frequency_penalty", "presence_penalty"] {
        if given(key).is_some_and(|value| value.as_f64() != Some(0.0)) {
            return refuse(key, "hone does not offer penalties yet: leave it out or send 0");
        }
    }
    if given("logit_bias").is_some_and(|value| value.as_object().is_none_or(|o| !o.is_empty())) {
        return refuse("logit_bias", "hone does not offer logit_bias yet");
    }
    Ok(())
}

fn whole(key: &str, value: &Value, most: u64) -> ApiResult<u64> {
    match value.as_u64().filter(|number| (1..=most).contains(number)) {
        Some(number) => Ok(number),
        None => {
            let message = format!("{key} is {value}; it must be a whole number from 1 to {most}");
            Err(ApiError::field(key, message))
        }
    }
}

fn number(key: &str, value: Option<&Value>, least: f64, most: f64) -> ApiResult<Option<f64>> {
    let Some(value) = value else {
        return Ok(None);
    };
    match value.as_f64().filter(|number| (least..=most).contains(number)) {
        Some(number) => Ok(Some(number)),
        None => {
            let message = format!("{key} is {value}; it must be a number from {least} to {most}");
            Err(ApiError::field(key, message))
        }
    }
}

fn seed(value: Option<&Value>) -> ApiResult<Option<u64>> {
    let Some(value) = value else {
        return Ok(None);
    };
    match value.as_i64() {
        Some(seed) => Ok(Some(seed as u64)),
        None => Err(ApiError::field("seed", format!("seed is {value}; it must be a whole number"))),
    }
}

fn stop(value: Option<&Value>) -> ApiResult<Vec<String>> {
    let wrong = || {
        let message =
            format!("stop must be a text or up to {MOST_STOPS} texts, none of them empty");
        ApiError::field("stop", message)
    };
    let texts = match value {
        None => return Ok(Vec::new()),
        Some(Value::String(text)) => vec![text.clone()],
        Some(Value::Array(list)) => {
            let texts: Option<Vec<String>> =
                list.iter().map(|text| text.as_str().map(str::to_owned)).collect();
            texts.ok_or_else(wrong)?
        }
        Some(_) => return Err(wrong()),
    };
    if texts.len() > MOST_STOPS || texts.iter().any(String::is_empty) {
        return Err(wrong());
    }
    Ok(texts)
}

fn tools(value: Option<&Value>) -> ApiResult<Vec<Value>> {
    match value {
        None => Ok(Vec::new()),
        Some(Value::Array(list)) => Ok(list.clone()),
        Some(other) => {
            let message = format!("tools is {other}; it must be a list");
            Err(ApiError::field("tools", message))
        }
    }
}
