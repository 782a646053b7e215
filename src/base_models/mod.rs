//! Base models: folders and `.gguf` files under the models folder.

pub mod catalog;

pub use catalog::{BaseModelEntry, Catalog, Skipped, Survey};
