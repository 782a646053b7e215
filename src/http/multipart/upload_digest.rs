//! What is found out about a file's bytes while they pass by.

use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::Duration;

use bytes::Bytes;
use md5::Md5;
use sha2::{Digest, Sha256};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;

use crate::dataset::ValidationReport;
use crate::http::error::{ApiError, ApiResult};
use crate::util::hex::hex;
use crate::validate::upload::UploadChecker;

/// Chunks on their way to the thread that looks at them.
const CHUNKS_IN_FLIGHT: usize = 8;

/// How long a thread waits for the next chunk before it is given back. Bytes are written by threads of the
/// same pool: slow clients, however many, may not hold them all.
const PATIENCE: Duration = Duration::from_millis(10);

/// Hashes and judges bytes on a thread of its own, as long as they come.
pub(in crate::http) struct Inspection {
    chunks: Sender<Chunk>,
    in_flight: Arc<Semaphore>,
    look: JoinHandle<Look>,
}

/// Bytes, with their place among those in flight.
type Chunk = (Bytes, OwnedSemaphorePermit);

/// What has been seen.
struct Look {
    chunks: Receiver<Chunk>,
    sha256: Sha256,
    md5: Option<Md5>,
    checker: UploadChecker,
}

/// What was found.
pub(in crate::http) struct Inspected {
    /// SHA-256 of the bytes, lower-case hex.
    pub(in crate::http) sha256: String,
    /// MD5 of the bytes, lower-case hex, if it was wanted.
    pub(in crate::http) md5: Option<String>,
    /// What they are as training data.
    pub(in crate::http) verdict: ValidationReport,
}

impl Inspection {
    /// Nothing seen yet.
    pub(in crate::http) fn new(is_md5_wanted: bool) -> Self {
        // The standard library's: a thread that waits in the runtime's would wake another for its timer.
        let (sender, chunks) = mpsc::channel();
        let md5 = is_md5_wanted.then(Md5::new);
        let look = Look { chunks, sha256: Sha256::new(), md5, checker: UploadChecker::new() };
        let in_flight = Arc::new(Semaphore::new(CHUNKS_IN_FLIGHT));
        Self { chunks: sender, in_flight, look: look.go_on() }
    }

    /// Takes the next bytes; waits while many are on their way, so that memory stays constant.
    pub(in crate::http) async fn see(&mut self, bytes: Bytes) -> ApiResult<()> {
        if self.look.is_finished() {
            self.look = (&mut self.look).await.map_err(ApiError::internal)?.go_on();
        }
        // A thread that ends just now has left no chunk behind, so that there is room for this one.
        let place = Arc::clone(&self.in_flight).acquire_owned().await;
        let place = place.map_err(ApiError::internal)?;
        self.chunks.send((bytes, place)).map_err(ApiError::internal)
    }

    /// What the whole is.
    pub(in crate::http) async fn finish(self) -> ApiResult<Inspected> {
        drop(self.chunks);
        let look = self.look.await.map_err(ApiError::internal)?;
        // Its thread may have been given back just before the last chunk came.
        let look = look.go_on().await.map_err(ApiError::internal)?;
        Ok(Inspected {
            sha256: hex(&look.sha256.finalize()),
            md5: look.md5.map(|md5| hex(&md5.finalize())),
            verdict: look.checker.finish(),
        })
    }
}

impl Look {
    /// Looks at chunks on another thread until there are no more, or none for a while.
    fn go_on(mut self) -> JoinHandle<Self> {
        tokio::task::spawn_blocking(move || {
            while let Ok((chunk, _place)) = self.chunks.recv_timeout(PATIENCE) {
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
    use super::*;

    #[tokio::test]
    async fn a_chunk_is_seen_however_long_it_takes_to_come() {
        let mut whole = Vec::new();
        let mut inspection = Inspection::new(true);
        for pause in [0, 1, 3, 1, 0] {
            tokio::time::sleep(PATIENCE * pause).await;
            for _ in 0..2 * CHUNKS_IN_FLIGHT {
                let line = b"{\"prompt\": \"a\", \"completion\": \"b\"}\n";
                whole.extend_from_slice(line);
                inspection.see(Bytes::from_static(line)).await.expect("takes it");
            }
        }
        let found = inspection.finish().await.expect("ends");
        assert_eq!(found.sha256, hex(&Sha256::digest(&whole)));
        assert_eq!(found.md5, Some(hex(&Md5::digest(&whole))));
        assert_eq!(found.verdict.examples, 5 * 2 * CHUNKS_IN_FLIGHT as u64);
        let nothing = Inspection::new(false);
        tokio::time::sleep(2 * PATIENCE).await;
        let found = nothing.finish().await.expect("ends");
        assert_eq!((found.md5, found.verdict.examples), (None, 0));
    }
}
