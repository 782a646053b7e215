//! `/v1/completions`: plain texts to continue.

mod body;
mod chunk;
pub(super) mod create;
mod logprobs;
mod object;
mod request;
