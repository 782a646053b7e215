//! The fields that chat and completions share, each read with its range. An explicit null is the same as
//! absence.

use serde_json::Value;

use crate::domain::error_code::ErrorCode;
use crate::http::error::{ApiError, ApiResult};
use crate::serve::Sampling;
use crate::util::excerpt::{excerpt, excerpt_of};
use crate::validate::fields::BodyFields;

/// Most completions of one prompt.
const MOST_CHOICES: u64 = 8;

/// Most stop sequences.
const MOST_STOPS: usize = 4;

/// Most prompts of a request.
pub(in crate::http) const MOST_PROMPTS: usize = 128;

/// Most tokens that `logit_bias` may name.
pub(super) const MOST_BIASES: usize = 1024;

/// Longest `prompt_cache_key`, in characters.
const MOST_CACHE_KEY_CHARS: usize = 512;

/// The body of a request for completions.
pub(in crate::http) struct GenerationFields<'a>(pub BodyFields<'a>);

/// The model that a request names, whose prefixes it may share, and how its reply is sent.
pub(in crate::http) struct ModelAndStream<'a> {
    /// Name of the model.
    pub model: &'a str,
    /// Requests of a project share computed prefixes only under the same one.
    pub cache_key: Option<&'a str>,
    /// Options of the stream; `None`: the reply is sent whole.
    pub stream: Option<StreamSettings>,
}

/// How a reply is streamed.
pub(in crate::http) struct StreamSettings {
    /// Whether the last chunk holds the usage.
    pub includes_usage: bool,
}

impl<'a> GenerationFields<'a> {
    /// The value of a field.
    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.0.get(key)
    }

    /// `model`, `prompt_cache_key`, `stream` and `stream_options`.
    pub fn model_and_stream(&self) -> ApiResult<ModelAndStream<'a>> {
        Ok(ModelAndStream {
            model: self.text("model")?,
            cache_key: self.cache_key()?,
            stream: self.stream()?,
        })
    }

    /// A text that must be there.
    pub fn text(&self, key: &str) -> ApiResult<&'a str> {
        match self.get(key) {
            Some(Value::String(text)) => Ok(text),
            Some(other) => Err(wrong(key, other, "a text")),
            None => Err(ApiError::field(key, format!("{key} is missing"))),
        }
    }

    /// True or false.
    pub fn switch_or(&self, key: &str, default: bool) -> ApiResult<bool> {
        match self.get(key) {
            None => Ok(default),
            Some(Value::Bool(value)) => Ok(*value),
            Some(other) => Err(wrong(key, other, "true or false")),
        }
    }

    /// A whole number.
    pub fn whole(&self, key: &str, least: u64, most: u64) -> ApiResult<Option<u64>> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        match value.as_u64().filter(|number| (least..=most).contains(number)) {
            Some(number) => Ok(Some(number)),
            None => Err(wrong(key, value, &format!("a whole number from {least} to {most}"))),
        }
    }

    /// A number.
    pub fn number(&self, key: &str, least: f64, most: f64) -> ApiResult<Option<f64>> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        match value.as_f64().filter(|number| (least..=most).contains(number)) {
            Some(number) => Ok(Some(number)),
            None => Err(wrong(key, value, &format!("a number from {least} to {most}"))),
        }
    }

    /// Temperature, nucleus, penalties and biases.
    pub fn sampling(&self) -> ApiResult<Sampling> {
        Ok(Sampling {
            temperature: self.number("temperature", 0.0, 2.0)?.unwrap_or(1.0),
            top_p: self.number("top_p", 0.0, 1.0)?.unwrap_or(1.0),
            frequency_penalty: self.number("frequency_penalty", -2.0, 2.0)?.unwrap_or(0.0),
            presence_penalty: self.number("presence_penalty", -2.0, 2.0)?.unwrap_or(0.0),
            logit_bias: self.logit_bias()?,
        })
    }

    /// How many completions of a prompt.
    pub fn n(&self) -> ApiResult<u32> {
        Ok(self.whole("n", 1, MOST_CHOICES)?.unwrap_or(1) as u32)
    }

    /// Any whole number.
    pub fn seed(&self) -> ApiResult<Option<u64>> {
        match self.get("seed") {
            None => Ok(None),
            Some(value) => match value.as_i64() {
                Some(seed) => Ok(Some(seed as u64)),
                None => Err(wrong("seed", value, "a whole number of 64 bits")),
            },
        }
    }

    /// Stop sequences: a text or a list of texts.
    pub fn stop(&self) -> ApiResult<Vec<String>> {
        let wrong = || {
            let message =
                format!("stop must be a text or up to {MOST_STOPS} texts, none of them empty");
            ApiError::field("stop", message)
        };
        let texts = match self.get("stop") {
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

    fn cache_key(&self) -> ApiResult<Option<&'a str>> {
        let key = "prompt_cache_key";
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(text)) if text.chars().count() <= MOST_CACHE_KEY_CHARS => {
                Ok(Some(text))
            }
            Some(Value::String(_)) => {
                let message = format!("{key} may have {MOST_CACHE_KEY_CHARS} characters at most");
                Err(ApiError::field(key, message))
            }
            Some(other) => Err(wrong(key, other, "a text")),
        }
    }

    fn stream(&self) -> ApiResult<Option<StreamSettings>> {
        let is_stream = self.switch_or("stream", false)?;
        let Some(options) = self.get("stream_options") else {
            return Ok(is_stream.then_some(StreamSettings { includes_usage: false }));
        };
        let param = "stream_options";
        if !is_stream {
            return Err(ApiError::field(param, "stream_options needs \"stream\": true"));
        }
        let Some(options) = options.as_object() else {
            return Err(wrong(param, options, "an object"));
        };
        let includes_usage = match options.get("include_usage") {
            None | Some(Value::Null) => false,
            Some(Value::Bool(include)) => *include,
            Some(other) => {
                return Err(wrong("stream_options.include_usage", other, "true or false"));
            }
        };
        Ok(Some(StreamSettings { includes_usage }))
    }

    /// Token ids with a number from -100 to 100 each.
    fn logit_bias(&self) -> ApiResult<Vec<(u32, f32)>> {
        let key = "logit_bias";
        let Some(value) = self.get(key) else {
            return Ok(Vec::new());
        };
        let Some(biases) = value.as_object() else {
            return Err(wrong(key, value, "an object of token ids and numbers"));
        };
        if biases.len() > MOST_BIASES {
            let message = format!("logit_bias may name {MOST_BIASES} tokens at most");
            return Err(ApiError::field(key, message));
        }
        let mut read = Vec::with_capacity(biases.len());
        for (token, bias) in biases {
            let param = format!("{key}.{token}");
            let id = token.parse::<u32>().ok().filter(|id| id.to_string() == *token);
            let Some(id) = id else {
                let token = excerpt(token);
                let message = format!("{key} has the key {token:?}; it must be the id of a token");
                return Err(ApiError::field(key, message));
            };
            let number = bias.as_f64().filter(|bias| (-100.0..=100.0).contains(bias));
            let Some(number) = number else {
                return Err(wrong(&param, bias, "a number from -100 to 100"));
            };
            read.push((id, number as f32));
        }
        Ok(read)
    }
}

/// The error of a value of the wrong type or out of range.
pub(in crate::http) fn wrong(key: &str, value: &Value, wanted: &str) -> ApiError {
    let (name, value) = (excerpt(key), excerpt_of(value));
    ApiError::field(key, format!("{name} is {value}; it must be {wanted}"))
}

/// The error of a field of OpenAI's API that would change the completion and that hone does not support.
pub(in crate::http) fn unsupported(param: &str, message: &str) -> ApiError {
    ApiError::new(ErrorCode::Unsupported, message).with_param(param)
}
