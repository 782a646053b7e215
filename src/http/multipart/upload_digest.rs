//! The digest of an upload: hashes and validates its bytes as they arrive.

use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::Duration;

use bytes::Bytes;
use md5::Digest;
use md5::Md5;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;

use crate::dataset::ValidationReport;
use crate::http::error::{ApiError, ApiResult};
use crate::util::file_digest::StreamDigest;
use crate::util::hex::hex;
use crate::validate::data_file::DataFileChecker;

/// Most chunks that wait for the worker thread.
const CHUNKS_IN_FLIGHT: usize = 8;

/// How long the worker thread waits for the next chunk before it returns to the pool. Blobs are written by
/// threads of the same pool, and slow clients must not occupy all of them.
const IDLE_TIMEOUT: Duration = Duration::from_millis(10);

/// Hashes and validates bytes on a thread of the blocking pool.
pub(in crate::http) struct UploadDigest {
    chunks: Sender<QueuedChunk>,
    in_flight: Arc<Semaphore>,
    worker: JoinHandle<DigestWorker>,
}

/// Bytes, with their permit to wait in the queue.
type QueuedChunk = (Bytes, OwnedSemaphorePermit);

/// The state of the digest. It moves to the worker thread and back.
struct DigestWorker {
    chunks: Receiver<QueuedChunk>,
    sha256: StreamDigest,
    md5: Option<Md5>,
    checker: DataFileChecker,
}

/// The digest of a whole upload.
pub(in crate::http) struct FileDigest {
    /// SHA-256 of the bytes, lower-case hex.
    pub(in crate::http) sha256: String,
    /// MD5 of the bytes, lower-case hex, if it was requested.
    pub(in crate::http) md5: Option<String>,
    /// The bytes as training data.
    pub(in crate::http) report: ValidationReport,
}

impl UploadDigest {
    /// A digest of no bytes yet.
    pub(in crate::http) fn new(with_md5: bool) -> Self {
        // The standard library's channel: a thread that waits in tokio's would wake another for its timer.
        let (sender, chunks) = mpsc::channel();
        let md5 = with_md5.then(Md5::new);
        let worker = DigestWorker {
            chunks,
            sha256: StreamDigest::default(),
            md5,
            checker: DataFileChecker::new(),
        };
        let in_flight = Arc::new(Semaphore::new(CHUNKS_IN_FLIGHT));
        Self { chunks: sender, in_flight, worker: worker.run() }
    }

    /// Takes the next bytes. Waits while the queue is full, so that memory stays constant.
    pub(in crate::http) async fn update(&mut self, bytes: Bytes) -> ApiResult<()> {
        if self.worker.is_finished() {
            self.worker = (&mut self.worker).await.map_err(ApiError::internal)?.run();
        }
        // A worker that ends just now has emptied the queue, so that there is room for this chunk.
        let permit = Arc::clone(&self.in_flight).acquire_owned().await;
        let permit = permit.map_err(ApiError::internal)?;
        self.chunks.send((bytes, permit)).map_err(ApiError::internal)
    }

    /// The digest of all bytes.
    pub(in crate::http) async fn finish(self) -> ApiResult<FileDigest> {
        drop(self.chunks);
        let worker = self.worker.await.map_err(ApiError::internal)?;
        // The worker may have returned to the pool just before the last chunk came.
        let worker = worker.run().await.map_err(ApiError::internal)?;
        Ok(FileDigest {
            sha256: worker.sha256.finish(),
            md5: worker.md5.map(|md5| hex(&md5.finalize())),
            report: worker.checker.finish(),
        })
    }
}

impl DigestWorker {
    /// Takes chunks on a pool thread until there are no more, or none for [`IDLE_TIMEOUT`].
    fn run(mut self) -> JoinHandle<Self> {
        tokio::task::spawn_blocking(move || {
            while let Ok((chunk, _permit)) = self.chunks.recv_timeout(IDLE_TIMEOUT) {
                self.sha256.update(&chunk);
                if let Some(md5) = &mut self.md5 {
                    md5.update(&chunk);
                }
                self.checker.feed(&chunk);
            }
            self
        })
    }
}

#[cfg(test)]
mod tests {
    use sha2::Sha256;

    use super::*;

    #[tokio::test]
    async fn a_chunk_is_counted_however_long_it_takes_to_come() {
        let mut whole = Vec::new();
        let mut digest = UploadDigest::new(true);
        for pause in [0, 1, 3, 1, 0] {
            tokio::time::sleep(IDLE_TIMEOUT * pause).await;
            for _ in 0..2 * CHUNKS_IN_FLIGHT {
                let line = b"{\"prompt\": \"a\", \"completion\": \"b\"}\n";
                whole.extend_from_slice(line);
                digest.update(Bytes::from_static(line)).await.expect("takes it");
            }
        }
        let found = digest.finish().await.expect("ends");
        assert_eq!(found.sha256, hex(&Sha256::digest(&whole)));
        assert_eq!(found.md5, Some(hex(&Md5::digest(&whole))));
        assert_eq!(found.report.examples, 5 * 2 * CHUNKS_IN_FLIGHT as u64);
        let nothing = UploadDigest::new(false);
        tokio::time::sleep(2 * IDLE_TIMEOUT).await;
        let found = nothing.finish().await.expect("ends");
        assert_eq!((found.md5, found.report.examples), (None, 0));
    }
}
