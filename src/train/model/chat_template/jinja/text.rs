//! Texts of values, whose memory is counted.

use std::ops::Deref;
use std::sync::Arc;

use super::budget;

/// What a text takes up beside its bytes.
const OVERHEAD: usize = 48;

/// A text that values share.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Text(Arc<str>);

impl Deref for Text {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl AsRef<str> for Text {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        budget::take_bytes(text.len() + OVERHEAD);
        Self(text.into())
    }
}

impl From<String> for Text {
    fn from(text: String) -> Self {
        budget::take_bytes(text.len() + OVERHEAD);
        Self(text.into())
    }
}

/// A text of the template itself, which the template holds.
impl From<Arc<str>> for Text {
    fn from(text: Arc<str>) -> Self {
        Self(text)
    }
}

impl Drop for Text {
    fn drop(&mut self) {
        if Arc::strong_count(&self.0) == 1 {
            budget::give_bytes(self.0.len() + OVERHEAD);
        }
    }
}
