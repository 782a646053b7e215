//! SHA-256 of a file.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use sha2::{Digest, Sha256};

use super::hex::hex;

/// How much is read at once.
const CHUNK: usize = 64 * 1024;

/// SHA-256 of a file's bytes, lower-case hex.
///
/// # Errors
/// The file cannot be read.
pub fn sha256_of(path: &Path) -> io::Result<String> {
    let mut hasher = Sha256::new();
    let mut file = File::open(path)?;
    let mut chunk = vec![0; CHUNK];
    loop {
        let length = file.read(&mut chunk)?;
        if length == 0 {
            break;
        }
        hasher.update(&chunk[..length]);
    }
    Ok(hex(&hasher.finalize()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_several_chunks_has_the_digest_of_its_bytes() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("file");
        let bytes = vec![7; 2 * CHUNK + 1];
        std::fs::write(&path, &bytes).expect("writes");
        assert_eq!(sha256_of(&path).expect("reads"), hex(&Sha256::digest(&bytes)));
        assert!(sha256_of(&folder.path().join("none")).is_err());
    }
}
