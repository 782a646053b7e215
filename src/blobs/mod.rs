//! Stage 3, the blobs: big bytes under keys that we choose, whole or not at all.

use std::ops::Range;
use std::path::Path;

use bytes::Bytes;
use futures_util::stream::BoxStream;

/// What can go wrong with blobs.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// There is nothing under this key.
    #[error("no blob under {0:?}")]
    NotFound(String),
    /// The disk is full.
    #[error("the disk is full")]
    Full,
    /// The storage failed.
    #[error("blob storage failed: {0}")]
    Storage(#[from] object_store::Error),
    /// A local file failed.
    #[error("{path}: {source}")]
    Local {
        /// Which file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
}

/// The blob storage: a local folder today, S3 later.
#[derive(Clone)]
pub struct Blobs {}

impl Blobs {
    /// Blobs in a local folder, made if it is not there; writes are fsynced.
    pub fn local(_root: &Path) -> Result<Self, BlobError> {
        todo!()
    }

    /// Stores the bytes of a local file under `key`; appears whole or not at all.
    pub async fn put_file(&self, _key: &str, _from: &Path) -> Result<u64, BlobError> {
        todo!()
    }

    /// A stream of the bytes under `key` (all, or a range), and the blob's whole size.
    pub async fn stream(
        &self,
        _key: &str,
        _range: Option<Range<u64>>,
    ) -> Result<(u64, BoxStream<'static, Result<Bytes, BlobError>>), BlobError> {
        todo!()
    }

    /// Copies a blob to a local file, in constant memory.
    pub async fn fetch_to(&self, _key: &str, _to: &Path) -> Result<(), BlobError> {
        todo!()
    }

    /// All bytes of a small blob.
    pub async fn bytes(&self, _key: &str) -> Result<Bytes, BlobError> {
        todo!()
    }

    /// Removes a blob; none there is not an error.
    pub async fn delete(&self, _key: &str) -> Result<(), BlobError> {
        todo!()
    }

    /// Every key.
    pub async fn list(&self) -> Result<Vec<String>, BlobError> {
        todo!()
    }
}
