//! The parts of a tar archive, for callers that stream it: for each file its [`header`], its bytes and their
//! [`padding`], then [`END`].

use std::io;

use tar::{EntryType, Header};

/// The length of an archive and the offset of each file are multiples of this.
const BLOCK: usize = 512;

/// The end of an archive, after the last file.
pub const END: &[u8] = &[0; 2 * BLOCK];

const PADDING: &[u8] = &[0; BLOCK];

/// The header of a file of so many bytes that was modified at `modified` (Unix seconds).
///
/// # Errors
/// A name that does not fit into a header.
pub fn header(name: &str, bytes: u64, modified: i64) -> io::Result<[u8; BLOCK]> {
    let mut header = Header::new_gnu();
    header.set_path(name)?;
    header.set_entry_type(EntryType::Regular);
    header.set_size(bytes);
    header.set_mode(0o644);
    header.set_mtime(modified.max(0) as u64);
    header.set_cksum();
    Ok(*header.as_bytes())
}

/// The padding after a file of so many bytes, up to the next block.
pub fn padding(bytes: u64) -> &'static [u8] {
    let over = (bytes % BLOCK as u64) as usize;
    if over == 0 { &[] } else { &PADDING[over..] }
}

/// Bytes of a whole archive over files of these sizes.
pub fn length(sizes: impl Iterator<Item = u64>) -> u64 {
    let files: u64 = sizes.map(|size| BLOCK as u64 + size + padding(size).len() as u64).sum();
    files + END.len() as u64
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn an_archive_holds_every_file_whatever_its_size(
            sizes in prop::collection::vec(0usize..2000, 0..4),
            modified in 0i64..4_000_000_000,
        ) {
            let files: Vec<(String, Vec<u8>)> = (0..)
                .zip(&sizes)
                .map(|(index, size)| (format!("file-{index}"), vec![index as u8 + 1; *size]))
                .collect();
            let mut bytes = Vec::new();
            for (name, content) in &files {
                let size = content.len() as u64;
                bytes.extend(header(name, size, modified).expect("a header"));
                bytes.extend(content);
                bytes.extend(padding(size));
            }
            bytes.extend(END);
            prop_assert_eq!(bytes.len() as u64, length(sizes.iter().map(|size| *size as u64)));
            let mut read = Vec::new();
            for entry in tar::Archive::new(bytes.as_slice()).entries().expect("an archive") {
                let mut entry = entry.expect("an entry");
                prop_assert_eq!(entry.header().mtime().expect("a time"), modified as u64);
                let name = entry.path().expect("a path").display().to_string();
                let mut content = Vec::new();
                entry.read_to_end(&mut content).expect("reads");
                read.push((name, content));
            }
            prop_assert_eq!(read, files);
        }
    }
}
