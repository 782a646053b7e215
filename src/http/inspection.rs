//! What is found out about a file's bytes while they pass by.

use sha2::{Digest, Sha256};

use crate::dataset::Verdict;
use crate::hex::hex;
use crate::validate::upload::UploadChecker;

/// Hashes and judges bytes as they come.
#[derive(Default)]
pub(super) struct Inspection {
    hash: Sha256,
    checker: UploadChecker,
}

/// What was found.
pub(super) struct Inspected {
    /// SHA-256 of the bytes, lower-case hex.
    pub(super) sha256: String,
    /// What they are as training data.
    pub(super) verdict: Verdict,
}

impl Inspection {
    /// Takes the next bytes.
    pub(super) fn feed(&mut self, bytes: &[u8]) {
        self.hash.update(bytes);
        self.checker.feed(bytes);
    }

    /// What the whole is.
    pub(super) fn finish(self) -> Inspected {
        Inspected { sha256: hex(&self.hash.finalize()), verdict: self.checker.finish() }
    }
}
