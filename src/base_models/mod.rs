//! Base models: folders and `.gguf` files under the models folder, and where to get them.

pub mod catalog;
mod hub;
mod known;
mod package;
mod pull;

pub use catalog::{BaseModelEntry, Catalog, Skipped, Survey};
pub use known::{KNOWN, KnownModel};
pub use pull::{PullError, Pulled, pull};
