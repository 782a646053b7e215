//! SHA-256 of files, read in constant memory.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use sha2::{Digest, Sha256};

use super::hex::hex;

/// Bytes that are read at once.
const CHUNK: usize = 256 * 1024;

/// SHA-256 of a file, in lower-case hexadecimal digits.
pub fn sha256_of_file(path: &Path) -> io::Result<String> {
    let mut digest = StreamDigest::default();
    digest.read_all(&mut File::open(path)?, |_chunk| Ok(()))?;
    Ok(digest.finish())
}

/// SHA-256 of bytes that come in pieces, for callers that use the bytes as well.
#[derive(Default)]
pub struct StreamDigest(Sha256);

impl StreamDigest {
    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// Reads `from` to its end, adds its bytes and gives each chunk to `each`.
    pub fn read_all(
        &mut self,
        from: &mut impl Read,
        mut each: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut buffer = vec![0; CHUNK];
        loop {
            let count = from.read(&mut buffer)?;
            if count == 0 {
                return Ok(());
            }
            self.update(&buffer[..count]);
            each(&buffer[..count])?;
        }
    }

    /// The digest, in lower-case hexadecimal digits.
    pub fn finish(self) -> String {
        hex(&self.0.finalize())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_several_chunks_has_the_digest_of_its_bytes() {
        let bytes: Vec<u8> = (0..2 * CHUNK + 7).map(|index| (index % 251) as u8).collect();
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("file");
        std::fs::write(&path, &bytes).expect("it writes");
        let digest = hex(&Sha256::digest(&bytes));
        assert_eq!(sha256_of_file(&path).expect("it reads"), digest);
        let (mut stream, mut copied) = (StreamDigest::default(), Vec::new());
        stream.update(&bytes[..3]);
        let copy = |chunk: &[u8]| {
            copied.extend_from_slice(chunk);
            Ok(())
        };
        stream.read_all(&mut &bytes[3..], copy).expect("it reads");
        assert_eq!((stream.finish(), copied.as_slice()), (digest, &bytes[3..]));
    }
}
