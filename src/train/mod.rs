//! Stage 6, the engine. It knows nothing of HTTP, SQL or jobs: it reads a base model and examples
//! from files, trains, and says how it goes in [`protocol::Progress`] messages.

mod announce;
pub mod backend;
pub mod base_model;
pub mod checkpoint;
mod conclude;
pub mod config;
pub mod cost;
pub mod decoder;
pub mod device;
pub mod encode;
pub mod engine;
mod failure;
mod give_way;
mod health;
mod look;
pub mod lora;
mod material;
pub mod memory;
mod ordinary;
mod pace;
pub mod preference;
mod prepare;
pub mod preview;
pub mod product;
pub mod protocol;
pub mod random;
pub mod report;
pub mod resolve;
pub mod run;
pub mod schedule;
mod start;
pub mod template;
pub mod tokenizer;
pub mod tuning;
mod watch;
pub mod weights;
