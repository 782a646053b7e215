//! Shortages that pass: what a machine lacks for a moment because others hold it.

use std::error::Error;
use std::io;

use super::disk_space;

/// What is short.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Room on a disk, or of a quota.
    Disk,
    /// File descriptors, of this process or of the machine, or processes.
    Descriptors,
    /// Memory.
    Memory,
}

/// What is short by this error or one of its sources; `None` when it is of another kind.
pub fn of(error: &(dyn Error + 'static)) -> Option<Kind> {
    let mut cause = Some(error);
    while let Some(current) = cause {
        if let Some(kind) = current.downcast_ref::<io::Error>().and_then(of_io) {
            return Some(kind);
        }
        cause = current.source();
    }
    None
}

/// The same of an error of the system.
pub fn of_io(error: &io::Error) -> Option<Kind> {
    use rustix::io::Errno;
    if disk_space::is_full(error) {
        return Some(Kind::Disk);
    }
    if error.kind() == io::ErrorKind::OutOfMemory {
        return Some(Kind::Memory);
    }
    let descriptors = [Errno::MFILE, Errno::NFILE, Errno::AGAIN];
    let number = error.raw_os_error()?;
    descriptors.iter().any(|one| one.raw_os_error() == number).then_some(Kind::Descriptors)
}
