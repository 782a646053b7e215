//! What a client sends, for the OpenAPI document.

use serde_json::Value;
use utoipa::ToSchema;

use crate::http::generation::schema::{LogitBias, Prompts, StopTexts, StreamOptions};

/// Texts to continue. Other fields of OpenAI's are ignored, except `suffix`, which is refused.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes the body for the OpenAPI document")]
pub struct CreateTextCompletion {
    /// Base model, `ft:…` or checkpoint.
    model: String,
    /// The text to continue; without it a new text begins.
    #[schema(value_type = Option<Prompts>, inline)]
    prompt: Option<Value>,
    /// Most tokens that are added; default 16.
    #[schema(minimum = 0, maximum = 4294967295i64)]
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
    /// How many answers to each prompt; default 1.
    #[schema(minimum = 1, maximum = 8)]
    n: Option<u32>,
    /// The same as `n`, if it is there: hone returns every completion.
    #[schema(minimum = 1, maximum = 8)]
    best_of: Option<u32>,
    /// Whether an answer begins with its prompt.
    echo: Option<bool>,
    /// Whether each token comes with its log-probability, and of how many of the likeliest at its
    /// place too.
    #[schema(minimum = 0, maximum = 5)]
    logprobs: Option<u32>,
    /// Taken off a token's logit for each time that the answer has it.
    #[schema(minimum = -2, maximum = 2)]
    frequency_penalty: Option<f64>,
    /// Taken off once if the answer has it.
    #[schema(minimum = -2, maximum = 2)]
    presence_penalty: Option<f64>,
    /// Added to the logits of tokens; -100 bans one.
    #[schema(value_type = Option<LogitBias>, inline)]
    logit_bias: Option<Value>,
    /// Server-sent events instead of one reply: chunks, then `[DONE]`.
    stream: Option<bool>,
    /// Needs `stream`.
    stream_options: Option<StreamOptions>,
    /// Extension of hone, as in chat: requests share computed prefixes of prompts only with those of the
    /// same project and the same key.
    #[schema(max_length = 512)]
    prompt_cache_key: Option<String>,
}
