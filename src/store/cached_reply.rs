//! A cached reply: a value that many clients ask for at about the same time is read once and serialised
//! once.

use std::ops::Deref;
use std::sync::OnceLock;

use bytes::Bytes;

/// A value that was read, with the bytes of its reply once they are made.
#[derive(Debug)]
pub struct CachedReply<T> {
    value: T,
    bytes: OnceLock<Bytes>,
}

impl<T> CachedReply<T> {
    /// A value whose reply is not made yet.
    pub fn new(value: T) -> Self {
        Self { value, bytes: OnceLock::new() }
    }

    /// The bytes of the reply, which `write` makes the first time. A value has one form of reply.
    ///
    /// # Errors
    /// `write` fails; the next call tries again.
    pub fn written<E>(&self, write: impl FnOnce(&T) -> Result<Vec<u8>, E>) -> Result<Bytes, E> {
        if let Some(bytes) = self.bytes.get() {
            return Ok(bytes.clone());
        }
        let bytes = Bytes::from(write(&self.value)?);
        Ok(self.bytes.get_or_init(|| bytes).clone())
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
        let reply = CachedReply::new(3);
        assert_eq!(reply.written(|_| Err("full")), Err("full"));
        let text = |value: &i32| Ok::<_, &str>(value.to_string().into_bytes());
        assert_eq!(reply.written(text), Ok(Bytes::from("3")));
        assert_eq!(reply.written(|_| Err("written again")), Ok(Bytes::from("3")));
    }
}
