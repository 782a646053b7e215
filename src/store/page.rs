//! Lists by pages: which part, in which order, of which items.

use std::collections::BTreeMap;

/// Which part of a list: after a cursor, so many.
#[derive(Debug, Clone, Default)]
pub struct PageRequest {
    /// Id of the last item of the page before.
    pub after: Option<String>,
    /// Most items, at least 1.
    pub limit: u32,
}

/// One page of a list.
#[derive(Debug, Clone)]
pub struct Page<T> {
    /// The items.
    pub items: Vec<T>,
    /// Whether there is another page.
    pub has_more: bool,
}

/// Order of a list by creation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Order {
    /// Oldest first.
    Ascending,
    /// Newest first.
    #[default]
    Descending,
}

/// Which jobs a list holds, by their metadata.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MetadataFilter {
    /// Those that hold all of these pairs; no pair means every job.
    Pairs(BTreeMap<String, String>),
    /// Those that were created without metadata.
    Absent,
}
