//! What is found out about a file's bytes while they pass by.

use bytes::Bytes;
use md5::Md5;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::error::{ApiError, ApiResult};
use crate::dataset::Verdict;
use crate::hex::hex;
use crate::validate::upload::UploadChecker;

/// Chunks on their way to the thread that looks at them.
const CHUNKS_IN_FLIGHT: usize = 8;

/// Hashes and judges bytes on a thread of its own.
pub(super) struct Inspection(JoinHandle<Inspected>);

/// What was found.
pub(super) struct Inspected {
    /// SHA-256 of the bytes, lower-case hex.
    pub(super) sha256: String,
    /// MD5 of the bytes, lower-case hex, if it was wanted.
    pub(super) md5: Option<String>,
    /// What they are as training data.
    pub(super) verdict: Verdict,
}

impl Inspection {
    /// Of the bytes that are sent, in order; they end when the sender is dropped.
    pub(super) fn begin(is_md5_wanted: bool) -> (mpsc::Sender<Bytes>, Self) {
        let (sender, mut chunks) = mpsc::channel::<Bytes>(CHUNKS_IN_FLIGHT);
        let thread = tokio::task::spawn_blocking(move || {
            let (mut sha256, mut checker) = (Sha256::new(), UploadChecker::new());
            let mut md5 = is_md5_wanted.then(Md5::new);
            while let Some(chunk) = chunks.blocking_recv() {
                sha256.update(&chunk);
                checker.feed(&chunk);
                if let Some(md5) = &mut md5 {
                    md5.update(&chunk);
                }
            }
            Inspected {
                sha256: hex(&sha256.finalize()),
                md5: md5.map(|md5| hex(&md5.finalize())),
                verdict: checker.finish(),
            }
        });
        (sender, Self(thread))
    }

    /// What the whole is; the sender must have been dropped.
    pub(super) async fn finish(self) -> ApiResult<Inspected> {
        self.0.await.map_err(ApiError::internal)
    }
}
