//! `/v1/chat/completions`.

mod body;
pub(super) mod create;
mod format;
mod logprobs;
mod object;
pub(super) mod request;
