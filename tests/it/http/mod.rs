//! Promises of the HTTP surface, kept through HTTP against the real binary.

pub mod answering;
pub mod chat_stream;
pub mod completions;
pub mod cors;
pub mod dry_run;
pub mod events;
pub mod extensions;
pub mod files;
pub mod graders;
pub mod idempotency;
pub mod jobs;
pub mod keys;
pub mod limits;
pub mod load;
pub mod models_chat;
pub mod pause;
pub mod permissions;
pub mod projects;
pub mod protocol;
pub mod request_fields;
pub mod template_settings;
pub mod templates_kept;
pub mod uploads;
pub mod webhooks;
pub mod webhooks_policy;
pub mod webhooks_tls;
