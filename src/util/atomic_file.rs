//! Files that appear whole or not at all, and survive a power cut once they are there.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

/// Writes `bytes` to `path`: into a temporary file beside it, synced, renamed, the folder synced.
pub fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let Some(folder) = path.parent() else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the path has no folder"));
    };
    let mut builder = tempfile::Builder::new();
    builder.prefix(".partial-");
    // As any other file: whoever may read the folder, a server of models perhaps, may read it.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let mut file = builder.tempfile_in(folder)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    sync_folder(folder)
}

/// Makes renames and new files in `folder` durable.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_leaves_nothing_beside_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("file");
        write(&path, b"first").expect("it writes");
        write(&path, b"second").expect("it writes again");
        assert_eq!(std::fs::read(&path).expect("it reads"), b"second");
        assert_eq!(std::fs::read_dir(folder.path()).expect("it lists").count(), 1);
    }

    #[cfg(unix)]
    #[test]
    fn a_file_can_be_read_by_whoever_may_read_others() {
        use std::os::unix::fs::PermissionsExt;

        let folder = tempfile::tempdir().expect("a folder");
        let (ours, plain) = (folder.path().join("ours"), folder.path().join("plain"));
        write(&ours, b"a").expect("it writes");
        std::fs::write(&plain, b"a").expect("it writes");
        let mode = |path| std::fs::metadata(path).expect("is there").permissions().mode();
        assert_eq!(mode(&ours), mode(&plain));
    }
}
