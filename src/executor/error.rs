//! Why an executor cannot begin.

use crate::blobs::BlobError;
use crate::store::StoreError;

/// Why an executor cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum ExecutorError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The blobs failed.
    #[error(transparent)]
    Blobs(#[from] BlobError),
    /// The folder of work in progress failed.
    #[error("{path}: {source}")]
    WorkFolder {
        /// Which folder.
        path: String,
        /// Why.
        source: std::io::Error,
    },
}
