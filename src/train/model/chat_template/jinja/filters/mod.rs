//! Filters: what stands behind a bar.

mod apply;
mod attributes;
mod html;
mod number;
mod order;
mod pretty;
mod sequence;
mod text;
mod wrap;

pub(crate) use self::apply::{apply, is_known};
