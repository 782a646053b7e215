//! `/v1/chat/completions`.

mod body;
mod chunk;
pub(super) mod create;
mod logprobs;
mod object;
mod request;
