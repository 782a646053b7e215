//! What chat and completions share: the model, the fields of a request that both have, and the reply, whole
//! or as a stream.

pub mod collect;
mod events;
pub mod fields;
pub mod format;
pub mod logprobs;
pub mod respond;
pub mod schema;
mod source;
mod stream;
pub mod usage;
