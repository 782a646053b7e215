//! What many ask for at about the same time is read once, and written as a reply once.

use std::ops::Deref;
use std::sync::OnceLock;

use bytes::Bytes;

/// A value that was read, with its bytes as a reply as soon as somebody has made them.
#[derive(Debug)]
pub struct CachedReply<T> {
    value: T,
    written: OnceLock<Bytes>,
}

impl<T> CachedReply<T> {
    /// Nobody has written it yet.
    pub fn new(value: T) -> Self {
        Self { value, written: OnceLock::new() }
    }

    /// The bytes that `write` makes of the value, or has made. A value is written in one way alone.
    ///
    /// # Errors
    /// When `write` fails, which it may do for everybody who asks.
    pub fn written<E>(&self, write: impl FnOnce(&T) -> Result<Vec<u8>, E>) -> Result<Bytes, E> {
        if let Some(written) = self.written.get() {
            return Ok(written.clone());
        }
        let written = Bytes::from(write(&self.value)?);
        Ok(self.written.get_or_init(|| written).clone())
    }
}

impl<T> Deref for CachedReply<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_written_once_unless_that_fails() {
        let found = CachedReply::new(3);
        assert_eq!(found.written(|_| Err("full")), Err("full"));
        let text = |value: &i32| Ok::<_, &str>(value.to_string().into_bytes());
        assert_eq!(found.written(text), Ok(Bytes::from("3")));
        assert_eq!(found.written(|_| Err("written again")), Ok(Bytes::from("3")));
    }
}
