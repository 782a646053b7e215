//! What tests share: the server's process, a store, a tiny model, writers of file formats, receivers.

pub mod authority;
pub mod executor;
pub mod gguf_writer;
pub mod machine_faults;
pub mod pytorch_writer;
pub mod scripted_model;
pub mod server;
pub mod store;
pub mod templates;
pub mod webhook_receiver;
