//! A base model as its folder or file has it: configuration, weights, tokenizer and chat template;
//! what of it trains; and what its arithmetic comes to.

pub mod base_model;
pub mod chat_template;
pub mod config;
pub mod error;
pub mod fingerprint;
pub mod flops;
pub mod kept_template;
pub mod lora;
pub mod model_files;
pub mod modules;
pub mod template_sources;
pub mod tensors;
pub mod tokenizer;
pub mod trainable;
pub mod weights;
