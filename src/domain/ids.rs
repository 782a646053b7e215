//! Identifiers as clients see them: a prefix that says what the thing is, and a random part.

use sha2::{Digest, Sha256};
use uuid::Uuid;

const BASE62: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// Id of an uploaded or produced file: `file-…`.
pub fn new_file_id() -> String {
    sortable("file-")
}

/// Id of an upload in parts: `upload_…`.
pub fn new_upload_id() -> String {
    sortable("upload_")
}

/// Id of a part of an upload: `part_…`.
pub fn new_part_id() -> String {
    sortable("part_")
}

/// Id of a fine-tuning job: `ftjob-…`.
pub fn new_job_id() -> String {
    sortable("ftjob-")
}

/// Id of a job's event: `ftevent-…`.
pub fn new_event_id() -> String {
    sortable("ftevent-")
}

/// Id of a checkpoint: `ftckpt_…` (OpenAI writes this one with an underscore).
pub fn new_checkpoint_id() -> String {
    sortable("ftckpt_")
}

/// Id of a permission to use a checkpoint: `cp_…`.
pub fn new_permission_id() -> String {
    sortable("cp_")
}

/// Id of a chat completion: `chatcmpl-…`.
pub fn new_completion_id() -> String {
    sortable("chatcmpl-")
}

/// Id of a plain completion: `cmpl-…`.
pub fn new_text_completion_id() -> String {
    sortable("cmpl-")
}

/// Id of a call of a tool: nine letters and digits, since the templates of Mistral's models take no
/// others in the next turn of a conversation.
pub fn new_tool_call_id() -> String {
    base62(Uuid::new_v4().as_u128(), 9)
}

/// Id of a webhook endpoint: `whe_…`.
pub fn new_webhook_endpoint_id() -> String {
    sortable("whe_")
}

/// Id of something that has happened: `evt_…`.
pub fn new_webhook_event_id() -> String {
    sortable("evt_")
}

/// Id of an event on its way to an endpoint, sent as `webhook-id`: `wh_…`.
pub fn new_webhook_delivery_id() -> String {
    sortable("wh_")
}

/// Id of an API key: `key_…`.
pub fn new_api_key_id() -> String {
    sortable("key_")
}

/// Id of a request, sent back as `x-request-id`: `req_…`.
pub fn new_request_id() -> String {
    sortable("req_")
}

/// The eight base-62 characters that end the name of a job's model. Always the same for a job, so
/// that checkpoints and the finished model share a name however often a trainer is started.
pub fn model_suffix(job_id: &str) -> String {
    let digest = Sha256::digest(job_id.as_bytes());
    let number = digest.iter().take(16).fold(0_u128, |sum, byte| sum << 8 | u128::from(*byte));
    base62(number, 8)
}

/// The last digits of a number.
fn base62(mut number: u128, digits: usize) -> String {
    let mut text = String::with_capacity(digits);
    for _ in 0..digits {
        text.push(char::from(BASE62[(number % 62) as usize]));
        number /= 62;
    }
    text
}

/// A version-7 UUID without hyphens: ids made later sort later, which keeps indexes compact.
fn sortable(prefix: &str) -> String {
    format!("{prefix}{}", Uuid::now_v7().simple())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_carry_the_prefix_that_clients_expect() {
        assert!(new_file_id().starts_with("file-"));
        assert!(new_job_id().starts_with("ftjob-"));
        assert!(new_event_id().starts_with("ftevent-"));
        assert!(new_checkpoint_id().starts_with("ftckpt_"));
    }

    #[test]
    fn a_model_suffix_is_eight_base62_characters_and_the_same_for_a_job() {
        let suffix = model_suffix("ftjob-1");
        assert_eq!(suffix.len(), 8);
        assert!(suffix.bytes().all(|byte| byte.is_ascii_alphanumeric()));
        assert_eq!(suffix, model_suffix("ftjob-1"));
        assert_ne!(suffix, model_suffix("ftjob-2"));
    }
}
