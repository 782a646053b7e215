//! Promises of the files that hone reads and writes.

pub mod export;
pub mod export_jobs;
pub mod loading_gguf;
pub mod loading_memory;
pub mod loading_pytorch;
pub mod loading_safetensors;
pub mod models_pull;
pub mod other_programs;
