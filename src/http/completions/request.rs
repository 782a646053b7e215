//! Reads a request for completions, and refuses what hone does not support.

use serde_json::Value;

use crate::http::error::{ApiError, ApiResult};
use crate::http::generation::fields::{GenerationFields, MOST_PROMPTS, unsupported, wrong};
use crate::serve::{Prompt, Request, TextPrompt};

/// The fields of the body.
pub(in crate::http) const FIELDS: &[&str] = &[
    "model",
    "prompt",
    "max_tokens",
    "temperature",
    "top_p",
    "seed",
    "stop",
    "n",
    "best_of",
    "echo",
    "logprobs",
    "frequency_penalty",
    "presence_penalty",
    "logit_bias",
    "stream",
    "stream_options",
    "prompt_cache_key",
];

/// OpenAI's default of `max_tokens`.
const MAX_TOKENS: u64 = 16;

/// Most alternatives of a token that `logprobs` may request.
const MOST_LIKELIEST: u64 = 5;

/// The types of a prompt, for error texts.
const PROMPTS: &str = "a text, a list of texts, a list of tokens, or a list of lists of tokens";

/// Reads the body without its `model` and `stream`.
pub(super) fn read(fields: &GenerationFields<'_>) -> ApiResult<Request> {
    if fields.0.get_unsupported("suffix").is_some_and(|suffix| suffix != "") {
        let message = "hone does not support infilling: leave suffix out";
        return Err(unsupported("suffix", message));
    }
    let prompts = prompts(fields.get("prompt"))?;
    let n = fields.n()?;
    if let Some(best_of) = fields.whole("best_of", 1, 8)?
        && best_of != u64::from(n)
    {
        let message = format!(
            "best_of is {best_of} and n is {n}; hone returns every completion: leave best_of out"
        );
        return Err(unsupported("best_of", &message));
    }
    let completions = prompts.len() * n as usize;
    if completions > MOST_PROMPTS {
        let message = format!(
            "{} prompts with {n} completions each are {completions} completions; a request may ask \
             for {MOST_PROMPTS}",
            prompts.len()
        );
        return Err(ApiError::field("prompt", message));
    }
    let max_tokens = fields.whole("max_tokens", 0, u64::from(u32::MAX))?.unwrap_or(MAX_TOKENS);
    let log_probabilities = fields.whole("logprobs", 0, MOST_LIKELIEST)?;
    Ok(Request {
        prompt: Prompt::Texts(prompts),
        sampling: fields.sampling()?,
        max_tokens: Some(max_tokens as u32),
        seed: fields.seed()?,
        stop: fields.stop()?,
        n,
        echo: fields.switch_or("echo", false)?,
        log_probabilities: log_probabilities.map(|count| count as usize),
    })
}

fn prompts(value: Option<&Value>) -> ApiResult<Vec<TextPrompt>> {
    let list = match value {
        None => return Ok(vec![TextPrompt::Text(String::new())]),
        Some(Value::String(text)) => return Ok(vec![TextPrompt::Text(text.clone())]),
        Some(Value::Array(list)) => list,
        Some(other) => return Err(wrong("prompt", other, PROMPTS)),
    };
    let prompts: Option<Vec<TextPrompt>> = match list.first() {
        Some(Value::Number(_)) => tokens(list).map(|tokens| vec![tokens]),
        Some(Value::Array(_)) => list.iter().map(|inner| tokens(inner.as_array()?)).collect(),
        _ => {
            let text = |value: &Value| value.as_str().map(|text| TextPrompt::Text(text.to_owned()));
            list.iter().map(text).collect()
        }
    };
    match prompts {
        Some(prompts) if !prompts.is_empty() => Ok(prompts),
        _ => {
            let message = format!("prompt must be {PROMPTS}, none of them empty");
            Err(ApiError::field("prompt", message))
        }
    }
}

/// A prompt of token ids; `None` when there is none, or when one is not a token id.
fn tokens(list: &[Value]) -> Option<TextPrompt> {
    let ids: Option<Vec<u32>> =
        list.iter().map(|id| id.as_u64().and_then(|id| u32::try_from(id).ok())).collect();
    ids.filter(|ids| !ids.is_empty()).map(TextPrompt::Tokens)
}
