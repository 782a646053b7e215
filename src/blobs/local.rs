//! What the local folder needs beyond the storage library: durable folders, and the removal of
//! files that a dead server left half-written.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// Makes a folder with its parents, and their entries durable: without that, a power cut could
/// take the folder away with everything fsynced inside it.
pub(super) fn make_durable_folder(folder: &Path) -> io::Result<()> {
    let mut made = Vec::new();
    let mut current = folder;
    while !current.as_os_str().is_empty() && !current.exists() {
        made.push(current);
        match current.parent() {
            Some(parent) => current = parent,
            None => break,
        }
    }
    fs::create_dir_all(folder)?;
    for folder in made {
        let parent = match folder.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        File::open(parent)?.sync_all()?;
    }
    Ok(())
}

/// Lets the system forget what it keeps in memory of a file that is on disk. Failing that costs nothing
/// but memory.
pub(super) async fn give_memory_back(path: PathBuf) {
    let forget = move || -> io::Result<()> {
        let file = File::open(&path)?;
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
        Ok(())
    };
    if let Ok(Err(error)) = tokio::task::spawn_blocking(forget).await {
        tracing::debug!(%error, "a blob stays in memory");
    }
}

/// Whether the storage library staged this file for an upload: `<name>#<digits>`.
pub(super) fn is_staged(name: &str) -> bool {
    name.rsplit_once('#').is_some_and(|(_name, number)| {
        !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
    })
}

/// Removes the files below `folder` whose name `unwanted` picks, and counts them in `removed`.
/// Symbolic links are not followed.
pub(super) fn remove_files(
    folder: &Path,
    unwanted: fn(&str) -> bool,
    removed: &mut u64,
) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_files(&entry.path(), unwanted, removed)?;
        } else if unwanted(&entry.file_name().to_string_lossy()) {
            fs::remove_file(entry.path())?;
            *removed += 1;
        }
    }
    Ok(())
}
