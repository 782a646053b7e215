//! Files of folders that others have filled. A pipe or a device in the place of a file would be read for ever, and
//! a file without an end fills the memory.

use std::fs::File;
use std::io::{Error, ErrorKind, Read, Result};
use std::path::Path;

/// Opens a file for reading.
///
/// # Errors
/// It cannot be opened, or is a folder, a pipe, a socket or a device.
pub fn open(path: &Path) -> Result<File> {
    // Looked at first: opening a pipe waits for someone who writes.
    if !std::fs::metadata(path)?.is_file() {
        return Err(Error::new(ErrorKind::InvalidInput, "it is not a regular file"));
    }
    File::open(path)
}

/// Reads a file of `most` bytes at most.
///
/// # Errors
/// As [`open`]; and the file is longer.
pub fn read(path: &Path, most: u64) -> Result<Vec<u8>> {
    let file = open(path)?;
    let mut bytes = Vec::new();
    file.take(most + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        let message = format!("it is longer than {most} bytes");
        return Err(Error::new(ErrorKind::FileTooLarge, message));
    }
    Ok(bytes)
}

/// Reads a text of `most` bytes at most.
///
/// # Errors
/// As [`read`]; and the file is not UTF-8.
pub fn read_text(path: &Path, most: u64) -> Result<String> {
    let bytes = read(path, most)?;
    String::from_utf8(bytes).map_err(|error| Error::new(ErrorKind::InvalidData, error))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn only_regular_files_of_the_permitted_length_are_read() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("file");
        std::fs::write(&file, "abc").expect("writes");
        assert_eq!(read_text(&file, 3).expect("it fits"), "abc");
        assert_eq!(read(&file, 2).expect_err("it is longer").kind(), ErrorKind::FileTooLarge);
        std::fs::write(&file, [0xff]).expect("writes");
        assert_eq!(read_text(&file, 3).expect_err("no text").kind(), ErrorKind::InvalidData);
        let socket = folder.path().join("socket");
        let _listener = UnixListener::bind(&socket).expect("binds");
        let device = Path::new("/dev/zero");
        for path in [folder.path(), &socket, device] {
            assert!(read(path, 3).is_err(), "{}", path.display());
        }
    }
}
