//! The digest of an upload: hashes and validates its bytes as they arrive.
//!
//! A worker takes chunks on a thread of the blocking pool, and returns to the pool when none comes for a
//! while. Whether there is a worker is part of the queue's state, under its lock: a chunk is never put into a
//! queue whose worker has just decided to go.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use md5::Digest;
use md5::Md5;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::dataset::ValidationReport;
use crate::http::error::{ApiError, ApiResult};
use crate::util::file_digest::StreamDigest;
use crate::util::hex::hex;
use crate::validate::data_file::DataFileChecker;

/// Most chunks that wait for the worker.
const CHUNKS_IN_FLIGHT: u32 = 8;

/// How long the worker waits for the next chunk before it returns to the pool. Blobs are written by threads
/// of the same pool, and slow clients must not occupy all of them.
const IDLE_TIMEOUT: Duration = Duration::from_millis(10);

/// Hashes and validates bytes on a thread of the blocking pool.
pub(in crate::http) struct UploadDigest {
    shared: Arc<Shared>,
    /// A permit for each chunk that waits or is worked on. Closed when the worker has panicked.
    in_flight: Arc<Semaphore>,
}

/// Bytes, with their permit to wait in the queue.
type QueuedChunk = (Bytes, OwnedSemaphorePermit);

/// What the upload and its worker share.
struct Shared {
    queue: Mutex<ChunkQueue>,
    /// Notified when a chunk has been added.
    added: Condvar,
    /// Locked by the worker for each chunk.
    state: Mutex<DigestState>,
}

#[derive(Default)]
struct ChunkQueue {
    chunks: VecDeque<QueuedChunk>,
    has_worker: bool,
}

/// The digest of the chunks so far.
struct DigestState {
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
        let state = DigestState::new(with_md5.then(Md5::new));
        let shared =
            Shared { queue: Mutex::default(), added: Condvar::new(), state: Mutex::new(state) };
        let in_flight = Arc::new(Semaphore::new(CHUNKS_IN_FLIGHT as usize));
        Self { shared: Arc::new(shared), in_flight }
    }

    /// Takes the next bytes. Waits while the queue is full, so that memory stays constant.
    pub(in crate::http) async fn update(&mut self, bytes: Bytes) -> ApiResult<()> {
        let permit = Arc::clone(&self.in_flight).acquire_owned().await;
        let permit = permit.map_err(|_closed| worker_panicked())?;
        let mut queue = self.shared.lock();
        queue.chunks.push_back((bytes, permit));
        if std::mem::replace(&mut queue.has_worker, true) {
            self.shared.added.notify_one();
            return Ok(());
        }
        drop(queue);
        let worker =
            Worker { shared: Arc::clone(&self.shared), in_flight: Arc::clone(&self.in_flight) };
        // It ends by itself. What it does is waited for by the permits of its chunks.
        drop(tokio::task::spawn_blocking(move || worker.run()));
        Ok(())
    }

    /// The digest of all bytes.
    pub(in crate::http) async fn finish(self) -> ApiResult<FileDigest> {
        // Every permit is free when every chunk is counted.
        let all = self.in_flight.acquire_many(CHUNKS_IN_FLIGHT).await;
        drop(all.map_err(|_closed| worker_panicked())?);
        let mut state = self.shared.state.lock().map_err(|_poisoned| worker_panicked())?;
        let DigestState { sha256, md5, checker } =
            std::mem::replace(&mut *state, DigestState::new(None));
        Ok(FileDigest {
            sha256: sha256.finish(),
            md5: md5.map(|md5| hex(&md5.finalize())),
            report: checker.finish(),
        })
    }
}

fn worker_panicked() -> ApiError {
    ApiError::internal("the thread that hashes an upload panicked")
}

impl DigestState {
    fn new(md5: Option<Md5>) -> Self {
        Self { sha256: StreamDigest::default(), md5, checker: DataFileChecker::new() }
    }

    fn take(&mut self, chunk: &[u8]) {
        self.sha256.update(chunk);
        if let Some(md5) = &mut self.md5 {
            md5.update(chunk);
        }
        self.checker.feed(chunk);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, ChunkQueue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next chunk; `None` when none has come for [`IDLE_TIMEOUT`], and then there is no worker any more.
    fn next_chunk(&self) -> Option<QueuedChunk> {
        let is_empty = |queue: &mut ChunkQueue| queue.chunks.is_empty();
        let waited = self.added.wait_timeout_while(self.lock(), IDLE_TIMEOUT, is_empty);
        let (mut queue, _timed_out) = waited.unwrap_or_else(PoisonError::into_inner);
        let next = queue.chunks.pop_front();
        queue.has_worker = next.is_some();
        next
    }
}

/// Takes chunks until none comes. If it panics, the upload is told by a closed semaphore.
struct Worker {
    shared: Arc<Shared>,
    in_flight: Arc<Semaphore>,
}

impl Worker {
    fn run(&self) {
        while let Some((chunk, _permit)) = self.shared.next_chunk() {
            let Ok(mut state) = self.shared.state.lock() else { return };
            state.take(&chunk);
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if self.shared.state.is_poisoned() {
            self.in_flight.close();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

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
        assert_eq!(found.report.examples, u64::from(5 * 2 * CHUNKS_IN_FLIGHT));
        let nothing = UploadDigest::new(false);
        tokio::time::sleep(2 * IDLE_TIMEOUT).await;
        let found = nothing.finish().await.expect("ends");
        assert_eq!((found.md5, found.report.examples), (None, 0));
    }

    /// The queue as it is when its worker has found nothing and is about to go, for whatever time: chunks
    /// that come now must not wait for it.
    #[tokio::test]
    async fn a_worker_that_goes_leaves_no_chunk_behind() {
        let mut digest = UploadDigest::new(false);
        for chunk in 0..5 * CHUNKS_IN_FLIGHT {
            let began = Instant::now();
            // Nobody takes chunks from here on, except a worker that these chunks start.
            if chunk % CHUNKS_IN_FLIGHT == 0 {
                while digest.shared.lock().has_worker {
                    tokio::time::sleep(IDLE_TIMEOUT).await;
                }
                assert!(digest.shared.next_chunk().is_none(), "a worker finds nothing");
            }
            let update = digest.update(Bytes::from_static(b"a\n"));
            tokio::time::timeout(Duration::from_secs(5), update)
                .await
                .expect("room")
                .expect("takes it");
            assert!(began.elapsed() < Duration::from_secs(5));
        }
        let finish = tokio::time::timeout(Duration::from_secs(5), digest.finish());
        let found = finish.await.expect("no chunk waits").expect("ends");
        assert_eq!(found.report.examples, u64::from(5 * CHUNKS_IN_FLIGHT));
    }

    #[tokio::test]
    async fn a_worker_that_panics_ends_the_upload_and_hangs_nobody() {
        let mut digest = UploadDigest::new(false);
        let shared = Arc::clone(&digest.shared);
        // As a panic in the middle of a chunk leaves it.
        let poisoned = std::thread::spawn(move || {
            let _state = shared.state.lock();
            panic!("for the test");
        });
        assert!(poisoned.join().is_err());
        for _ in 0..3 * CHUNKS_IN_FLIGHT {
            let update = digest.update(Bytes::from_static(b"a"));
            if tokio::time::timeout(Duration::from_secs(5), update)
                .await
                .expect("no hanging")
                .is_err()
            {
                break;
            }
        }
        let finish = tokio::time::timeout(Duration::from_secs(5), digest.finish());
        assert!(finish.await.expect("no hanging").is_err());
    }
}
