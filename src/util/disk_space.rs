//! Room on a disk: how much is free, and how much stays free so that a full disk can still be cleared.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

/// Bytes of each of the two reserves of a data folder's disk: those that files of clients and of jobs leave
/// free, and those that the database holds for itself. A write-ahead log of the usual size fits twice.
pub const RESERVE: u64 = 16 * 1024 * 1024;

/// Bytes that are free for this process on the disk of `path`.
///
/// # Errors
/// The system does not tell.
pub fn free(path: &Path) -> io::Result<u64> {
    let disk = rustix::fs::statvfs(path)?;
    Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
}

/// Fails as a full disk does unless `bytes` fit on the disk of `path` and leave [`RESERVE`] free. A disk that
/// does not tell is not full.
///
/// # Errors
/// [`io::ErrorKind::StorageFull`].
pub fn require(path: &Path, bytes: u64) -> io::Result<()> {
    match free(path) {
        Ok(free) if free < bytes.saturating_add(RESERVE) => Err(io::ErrorKind::StorageFull.into()),
        Ok(_) | Err(_) => Ok(()),
    }
}

/// Whether a disk or a quota is full by this error.
pub fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Makes a file that takes `bytes` on the disk, and keeps nothing when they do not fit.
///
/// # Errors
/// The disk is full or fails.
pub fn take(path: &Path, bytes: u64) -> io::Result<()> {
    let taken = allocate(&File::create(path)?, bytes);
    if taken.is_err() {
        // The first error says more.
        let _partial = std::fs::remove_file(path);
    }
    taken
}

fn allocate(file: &File, bytes: u64) -> io::Result<()> {
    const CHUNK: usize = 64 * 1024;
    #[cfg(target_os = "linux")]
    match rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), 0, bytes) {
        Ok(()) => return file.sync_all(),
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {}
        Err(error) => return Err(error.into()),
    }
    let (zeros, mut file, mut left) = ([0; CHUNK], file, bytes);
    while left > 0 {
        let length = left.min(CHUNK as u64);
        file.write_all(&zeros[..length as usize])?;
        left -= length;
    }
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_lies_on_the_disk_and_what_does_not_fit_leaves_nothing() {
        use std::os::unix::fs::MetadataExt;
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("taken");
        take(&path, 1 << 20).expect("taken");
        let taken = std::fs::metadata(&path).expect("is there");
        assert_eq!(taken.len(), 1 << 20);
        assert!(taken.blocks() * 512 >= 1 << 20, "{} blocks", taken.blocks());
        let free = free(folder.path()).expect("tells");
        require(folder.path(), 1).expect("fits");
        let refused = require(folder.path(), free).expect_err("the reserve stays free");
        assert!(is_full(&refused), "{refused}");
        take(&path, free + (1 << 30)).expect_err("more than there is");
        assert!(!path.exists());
    }
}
