//! Base models: folders and `.gguf` files in the models folder, and where to download them.

pub mod catalog;
mod hub;
mod known;
mod package;
mod pull;

pub use catalog::{BaseModelEntry, Catalog, CatalogScan, SkippedEntry};
pub use known::{KNOWN, KnownModel};
pub use pull::{PullError, PullOutcome, pull};
