//! Base models: folders and `.gguf` files in the models folder, and where to download them.

pub mod catalog;
mod hub;
mod hub_record;
mod known;
mod package;
mod pull;
mod shared_catalog;

pub use catalog::{BaseModelEntry, Catalog, CatalogScan, SkippedEntry};
pub use hub_record::{HubRecord, RECORD_FILE, hub_name};
pub use known::{KNOWN, KnownModel};
pub use pull::{PullError, PullOutcome, pull};
pub use shared_catalog::SharedCatalog;
