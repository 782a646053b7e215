//! Every integration test, in one binary: a module for each promise.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "tests fail by panicking, and say on the terminal what they could not run"
)]

mod allocations;
mod answering;
mod architecture;
mod authority;
mod bench;
mod device;
mod executor_faults;
mod executor_jobs;
mod executor_support;
mod export;
mod export_jobs;
mod frozen;
mod gguf_writer;
mod golden;
mod gradients;
mod http_answering;
mod http_chat_stream;
mod http_completions;
mod http_cors;
mod http_dry_run;
mod http_events;
mod http_extensions;
mod http_files;
mod http_graders;
mod http_idempotency;
mod http_jobs;
mod http_keys;
mod http_limits;
mod http_models_chat;
mod http_pause;
mod http_permissions;
mod http_projects;
mod http_protocol;
mod http_uploads;
mod http_webhooks;
mod http_webhooks_policy;
mod http_webhooks_tls;
mod kills;
mod load;
mod loading_gguf;
mod loading_memory;
mod loading_pytorch;
mod loading_safetensors;
mod migration_guide;
mod models_pull;
mod other_programs;
mod pytorch_writer;
mod real_clients;
mod real_model;
mod recipe;
mod reference_run;
mod scripted_model;
mod server;
mod store_conformance;
mod store_random_operations;
mod store_sqlite;
mod store_support;
mod store_webhooks;
mod template_families;
mod templates;
mod training;
mod tuning;
mod webhook_receiver;
mod whole_models;

/// Counts allocations where a test asks it to; else it passes them on.
#[global_allocator]
static ALLOCATOR: dhat::Alloc = dhat::Alloc;
