//! Stage 7: the file formats of what a job produces: adapter, model, GGUF, certificate, metrics, archive.

pub mod archive;
pub mod certificate;
pub mod gguf;
pub mod metrics_csv;
pub mod model;
pub mod peft;
