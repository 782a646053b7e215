//! Stage 6, the engine. It knows nothing of HTTP, SQL or jobs: it reads a base model and examples
//! from files, trains, and says how it goes in [`protocol::Progress`] messages.

pub mod backend;
pub mod base_model;
pub mod checkpoint;
pub mod config;
pub mod decoder;
pub mod encode;
pub mod engine;
mod failure;
pub mod lora;
mod memory;
pub mod preference;
pub mod protocol;
pub mod random;
pub mod resolve;
pub mod run;
pub mod schedule;
pub mod template;
pub mod tokenizer;
pub mod weights;
