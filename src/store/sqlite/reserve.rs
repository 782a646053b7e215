//! Room that the database keeps for itself: a file that takes it, and is removed when a transaction that
//! frees room, or ends a job, finds the disk full. Until the file is there again, nothing else is written.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::util::disk_space::{self, RESERVE};

/// Name of the file in the data folder.
const RESERVE_FILE: &str = "reserve";

/// The room of one data folder.
pub(super) struct Reserve {
    path: PathBuf,
    is_kept: AtomicBool,
}

impl Reserve {
    /// Takes the room in `data_dir`, unless an earlier server has or the disk is full.
    pub(super) fn take(data_dir: &std::path::Path) -> Self {
        let path = data_dir.join(RESERVE_FILE);
        let is_there = std::fs::metadata(&path).is_ok_and(|file| file.len() == RESERVE);
        let reserve = Self { path, is_kept: AtomicBool::new(is_there) };
        if !reserve.is_kept() {
            tracing::warn!(
                "the disk of {} is full: nothing is taken until there is room",
                data_dir.display()
            );
        }
        reserve
    }

    /// Whether the room is kept. Takes it again when the disk has room for it and for as much beside it.
    pub(super) fn is_kept(&self) -> bool {
        if self.is_kept.load(Ordering::Acquire) {
            return true;
        }
        let taken = disk_space::require(&self.path.with_file_name("."), RESERVE)
            .and_then(|()| disk_space::take(&self.path, RESERVE));
        match taken {
            Ok(()) => self.is_kept.store(true, Ordering::Release),
            // A disk that cannot keep room has what it has: only a full one refuses.
            Err(error) if !disk_space::is_full(&error) => return true,
            Err(_full) => return false,
        }
        true
    }

    /// Gives the room to whoever must write now; `false` when it has been given already.
    pub(super) fn give(&self) -> bool {
        let was_there = std::fs::remove_file(&self.path).is_ok();
        self.is_kept.store(false, Ordering::Release);
        was_there
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_room_is_given_once_and_taken_again() {
        let folder = tempfile::tempdir().expect("a folder");
        let reserve = Reserve::take(folder.path());
        let path = folder.path().join(RESERVE_FILE);
        assert!(reserve.is_kept() && path.exists());
        assert!(reserve.give() && !path.exists());
        assert!(!reserve.give());
        assert!(reserve.is_kept() && path.exists());
    }
}
