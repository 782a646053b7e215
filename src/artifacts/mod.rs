//! Stage 7: the files that a job leaves behind, and how they are written: whole or not at all.

pub mod archive;
pub mod certificate;
pub mod gguf;
pub mod metrics_csv;
pub mod model;
pub mod peft;
