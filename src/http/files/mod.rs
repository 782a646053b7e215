//! `/v1/files`: what clients upload and what jobs produce.

pub(super) mod content;
pub(super) mod create;
pub(super) mod delete;
mod find;
pub(super) mod list;
pub(super) mod object;
pub(super) mod retrieve;
