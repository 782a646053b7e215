//! What differs between the replies of chat and of completions.

use serde::Serialize;
use serde_json::Value;

use super::collect::GeneratedCompletions;
use crate::serve::Event;

/// The fields of a reply that do not depend on the generated text; every chunk of a stream repeats them.
#[derive(Clone)]
pub(in crate::http) struct CompletionMetadata {
    /// Id of the reply.
    pub id: String,
    /// Type of the object.
    pub object: &'static str,
    /// Unix seconds.
    pub created: i64,
    /// As the client named it.
    pub model: String,
}

/// The shape of the replies to one request.
pub(in crate::http) trait CompletionFormat: Send + 'static {
    /// The reply to a request that does not stream.
    type Reply: Serialize;

    /// `object` of a whole reply.
    const OBJECT: &'static str;

    /// `object` of a chunk.
    const CHUNK_OBJECT: &'static str;

    /// A new id of a reply.
    fn new_id() -> String;

    /// The whole reply.
    fn reply(self, metadata: CompletionMetadata, generated: GeneratedCompletions) -> Self::Reply;

    /// The entries of `choices` for an event. Each is sent in a chunk of its own.
    fn chunk_choices(&mut self, event: Event) -> Vec<Value>;
}
