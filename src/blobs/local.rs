//! What the local folder needs beyond the storage library: durable folders, and the removal of unfinished files.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// Creates a folder with its parents and makes their entries durable. Without that, a power failure could remove the
/// folder with every fsynced file in it.
pub(super) fn make_durable_folder(folder: &Path) -> io::Result<()> {
    let mut created = Vec::new();
    let mut current = folder;
    while !current.as_os_str().is_empty() && !current.exists() {
        created.push(current);
        match current.parent() {
            Some(parent) => current = parent,
            None => break,
        }
    }
    fs::create_dir_all(folder)?;
    for folder in created {
        let parent = match folder.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        File::open(parent)?.sync_all()?;
    }
    Ok(())
}

/// Drops a file from the page cache. A failure only costs memory.
pub(super) async fn drop_from_page_cache(path: PathBuf) {
    let drop_pages = move || -> io::Result<()> {
        let file = File::open(&path)?;
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
        Ok(())
    };
    if let Ok(Err(error)) = tokio::task::spawn_blocking(drop_pages).await {
        tracing::debug!(%error, "a blob cannot be dropped from the page cache");
    }
}

/// Whether this is a staged file of the storage library: `<name>#<digits>`.
pub(super) fn is_staged(name: &str) -> bool {
    name.rsplit_once('#').is_some_and(|(_name, number)| {
        !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
    })
}

/// Removes the files below `folder` whose name is `unwanted`, and counts them in `removed`.
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

/// Removes the empty folders below `folder`. Symbolic links are not followed.
pub(super) fn remove_empty_folders(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_empty_folders(&entry.path())?;
            match fs::remove_dir(entry.path()) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}
