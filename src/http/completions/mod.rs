//! `/v1/completions`: continues plain texts.

mod body;
pub(super) mod create;
mod format;
mod logprobs;
mod object;
pub(super) mod request;
