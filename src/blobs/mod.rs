//! Stage 3, the blobs: the bytes of files, under keys that hone chooses, whole or not at all.
//!
//! A blob is durable when the call that stored it returns. Only then the row that names it may be written. Blobs
//! whose row was never written are garbage, which the executor collects; see [`Blobs::sweep_unfinished`].

mod local;

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{StreamExt, TryStreamExt};
use object_store::local::LocalFileSystem;
use object_store::path::Path as Key;
use object_store::{
    GetOptions, GetRange, GetResultPayload, MultipartUpload, ObjectStore, ObjectStoreExt,
    PutPayload,
};
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt};
use tokio_util::io::ReaderStream;

use crate::util::disk_space::{self, is_full};
use crate::util::error_source::innermost;

/// Bytes that are read or written at once. A call holds a small multiple of it in memory.
const CHUNK: usize = 1024 * 1024;

/// Most chunks in the buffer of a staged blob: a client may send single bytes, and each chunk has its overhead.
const MAX_BUFFERED_CHUNKS: usize = 256;

/// Blobs with more bytes are dropped from the page cache once they are stored: a large upload would evict the model
/// that is training. Parts of uploads are smaller, because they are read again when the upload is completed.
const MAX_PAGE_CACHED: usize = 64 * 1024 * 1024;

/// Keys of uploaded files begin with this.
pub const UPLOADS: &str = "files/";

/// Keys of parts of uploads begin with this.
pub const PARTS: &str = "parts/";

/// Keys of result files begin with this.
pub const RESULTS: &str = "jobs/";

/// The key of an uploaded file.
pub fn upload_key(file_id: &str) -> String {
    format!("{UPLOADS}{file_id}")
}

/// The key of a part of an upload.
pub fn part_key(part_id: &str) -> String {
    format!("{PARTS}{part_id}")
}

/// The key of a result file. It contains the epoch of the claim, so that an executor that has lost its claim cannot
/// overwrite the files of its successor.
pub fn result_key(job_id: &str, epoch: i64, name: &str) -> String {
    format!("{RESULTS}{job_id}/{epoch}/{name}")
}

/// Why a blob cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// There is no blob with this key.
    #[error("no blob under {0:?}")]
    NotFound(String),
    /// The disk is full, but for what stays free on it.
    #[error("the disk is full")]
    Full,
    /// The storage failed.
    // The errors around the innermost one name files of this machine.
    #[error("blob storage failed: {}", innermost(.0))]
    Storage(object_store::Error),
    /// A local file failed.
    #[error("{file}: {source}")]
    Local {
        /// The name of the file, for people who do not know where it lies.
        file: String,
        /// Why.
        source: std::io::Error,
    },
}

impl BlobError {
    /// A local file failed.
    pub fn local(path: &Path, source: std::io::Error) -> Self {
        let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Self::Local { file, source }
    }
}

/// The blob storage: a local folder today, S3 later.
#[derive(Clone)]
pub struct Blobs {
    storage: Arc<dyn ObjectStore>,
    objects: PathBuf,
    spool: PathBuf,
}

impl Blobs {
    /// Blobs in a local folder, made if it is not there; writes are fsynced.
    pub fn local(root: &Path) -> Result<Self, BlobError> {
        let objects = root.join("objects");
        let spool = root.join("spool");
        for folder in [&objects, &spool] {
            local::make_durable_folder(folder).map_err(|source| local_error(folder, source))?;
        }
        let storage = LocalFileSystem::new_with_prefix(&objects)
            .map_err(|error| storage_error("", error))?
            .with_fsync(true)
            // Checkpoints come and go, and each has a folder.
            .with_automatic_cleanup(true);
        Ok(Self { storage: Arc::new(storage), objects, spool })
    }

    /// A folder for temporary files of requests. Its files are removed at the next start.
    pub fn spool_dir(&self) -> &Path {
        &self.spool
    }

    /// Removes the unfinished files of a server that died: everything in the spool, and staged blobs. Only for the
    /// start, before anything uses the storage. Returns the number of files.
    pub async fn sweep_unfinished(&self) -> Result<u64, BlobError> {
        let objects = self.objects.clone();
        let spool = self.spool.clone();
        let swept = tokio::task::spawn_blocking(move || {
            let mut removed = 0;
            local::remove_files(&spool, |_name| true, &mut removed)
                .map_err(|source| local_error(&spool, source))?;
            local::remove_files(&objects, local::is_staged, &mut removed)
                .map_err(|source| local_error(&objects, source))?;
            local::remove_empty_folders(&objects)
                .map_err(|source| local_error(&objects, source))?;
            Ok(removed)
        });
        swept.await.unwrap_or_else(|panic| Err(local_error(&self.spool, panic.into())))
    }

    /// Stores a local file under `key`. The blob appears whole or not at all, and is durable when this returns.
    /// Returns its size.
    pub async fn put_file(&self, key: &str, from: &Path) -> Result<u64, BlobError> {
        let file = File::open(from).await.map_err(|source| local_error(from, source))?;
        let mut chunks = ReaderStream::with_capacity(file, CHUNK);
        let mut staged = self.stage(key).await?;
        let mut total = 0;
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(|source| local_error(from, source))?;
            total += chunk.len() as u64;
            staged.write(chunk).await?;
        }
        staged.commit().await?;
        Ok(total)
    }

    /// Starts a blob under `key`. It appears when it is committed, or not at all.
    pub async fn stage(&self, key: &str) -> Result<StagedBlob, BlobError> {
        let upload = self.storage.put_multipart(&parse(key)?).await;
        let upload = upload.map_err(|error| storage_error(key, error))?;
        let path = self.objects.join(key);
        Ok(StagedBlob {
            upload,
            key: key.to_owned(),
            objects: self.objects.clone(),
            path,
            buffered: Vec::new(),
            written: 0,
        })
    }

    /// A stream of the bytes under `key` (all, or a range), and the blob's whole size. A range may
    /// end beyond the end, and must begin before it.
    pub async fn stream(
        &self,
        key: &str,
        range: Option<Range<u64>>,
    ) -> Result<(u64, BoxStream<'static, Result<Bytes, BlobError>>), BlobError> {
        let options = GetOptions { range: range.map(GetRange::Bounded), ..GetOptions::default() };
        let found = self
            .storage
            .get_opts(&parse(key)?, options)
            .await
            .map_err(|error| storage_error(key, error))?;
        let size = found.meta.size;
        let owned_key = key.to_owned();
        let stream = match found.payload {
            GetResultPayload::Stream(stream) => {
                stream.map_err(move |error| storage_error(&owned_key, error)).boxed()
            }
            // The stream of the storage library switches threads for every 8 KiB.
            GetResultPayload::File(file, path) => {
                let mut file = File::from_std(file);
                file.seek(std::io::SeekFrom::Start(found.range.start))
                    .await
                    .map_err(|source| local_error(&path, source))?;
                let wanted = file.take(found.range.end - found.range.start);
                ReaderStream::with_capacity(wanted, CHUNK)
                    .map_err(move |source| local_error(&path, source))
                    .boxed()
            }
        };
        Ok((size, stream))
    }

    /// Copies a blob to a local file, in constant memory; the file appears whole or not at all.
    pub async fn fetch_to(&self, key: &str, to: &Path) -> Result<(), BlobError> {
        let (size, mut stream) = self.stream(key, None).await?;
        disk_space::require(&self.objects, size).map_err(|source| local_error(to, source))?;
        let partial = to.with_added_extension("partial");
        let failed = |source| local_error(&partial, source);
        let mut file = File::create(&partial).await.map_err(failed)?;
        while let Some(chunk) = stream.try_next().await? {
            file.write_all(&chunk).await.map_err(failed)?;
        }
        file.flush().await.map_err(failed)?;
        file.sync_all().await.map_err(failed)?;
        tokio::fs::rename(&partial, to).await.map_err(|source| local_error(to, source))
    }

    /// All bytes of a small blob.
    pub async fn bytes(&self, key: &str) -> Result<Bytes, BlobError> {
        let found =
            self.storage.get(&parse(key)?).await.map_err(|error| storage_error(key, error))?;
        found.bytes().await.map_err(|error| storage_error(key, error))
    }

    /// Removes a blob. It is no error if there is none.
    pub async fn delete(&self, key: &str) -> Result<(), BlobError> {
        match self.storage.delete(&parse(key)?).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(storage_error(key, error)),
        }
    }

    /// Every key.
    pub async fn list(&self) -> Result<Vec<String>, BlobError> {
        self.storage
            .list(None)
            .map_ok(|found| found.location.to_string())
            .map_err(|error| storage_error("", error))
            .try_collect()
            .await
    }
}

/// A blob that is being written. Its bytes are removed if it is dropped.
pub struct StagedBlob {
    upload: Box<dyn MultipartUpload>,
    key: String,
    /// The folder whose disk the blob is on.
    objects: PathBuf,
    /// The path of the blob.
    path: PathBuf,
    /// Bytes that have not been written yet.
    buffered: Vec<Bytes>,
    /// Number of bytes that have been written.
    written: usize,
}

impl StagedBlob {
    /// Appends bytes. About [`CHUNK`] of them are written at a time, so that the memory is constant.
    pub async fn write(&mut self, bytes: Bytes) -> Result<(), BlobError> {
        self.buffered.push(bytes);
        let buffered: usize = self.buffered.iter().map(Bytes::len).sum();
        let is_enough = buffered >= CHUNK || self.buffered.len() >= MAX_BUFFERED_CHUNKS;
        if is_enough { self.flush().await } else { Ok(()) }
    }

    async fn flush(&mut self) -> Result<(), BlobError> {
        let part = PutPayload::from_iter(std::mem::take(&mut self.buffered));
        disk_space::require(&self.objects, part.content_length() as u64)
            .map_err(|source| local_error(&self.objects, source))?;
        self.written += part.content_length();
        let put = self.upload.put_part(part).await;
        put.map_err(|error| storage_error(&self.key, error))
    }

    /// Publishes the blob; it is durable when this returns.
    pub async fn commit(mut self) -> Result<(), BlobError> {
        if !self.buffered.is_empty() {
            self.flush().await?;
        }
        let done = self.upload.complete().await;
        done.map_err(|error| storage_error(&self.key, error))?;
        if self.written > MAX_PAGE_CACHED {
            local::drop_from_page_cache(self.path).await;
        }
        Ok(())
    }

    /// Removes the bytes.
    pub async fn discard(mut self) {
        if let Err(error) = self.upload.abort().await {
            tracing::warn!(key = self.key, %error, "a staged blob cannot be removed before the next start");
        }
    }
}

/// Parses a key for the storage. hone chooses the keys; one with an empty part or a `..` is a bug and refused.
fn parse(key: &str) -> Result<Key, BlobError> {
    Key::parse(key).map_err(|error| BlobError::Storage(error.into()))
}

fn local_error(path: &Path, source: std::io::Error) -> BlobError {
    if is_full(&source) {
        return BlobError::Full;
    }
    BlobError::local(path, source)
}

/// Converts an error of the storage, which wraps the causes that callers handle.
fn storage_error(key: &str, error: object_store::Error) -> BlobError {
    if matches!(error, object_store::Error::NotFound { .. }) {
        return BlobError::NotFound(key.to_owned());
    }
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    while let Some(current) = cause {
        if current.downcast_ref::<std::io::Error>().is_some_and(is_full) {
            return BlobError::Full;
        }
        cause = current.source();
    }
    BlobError::Storage(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(length: usize) -> Vec<u8> {
        (0..length).map(|index| (index * 31 % 251) as u8).collect()
    }

    async fn collect(
        blobs: &Blobs,
        key: &str,
        range: Option<Range<u64>>,
    ) -> Result<(u64, Vec<u8>), BlobError> {
        let (size, stream) = blobs.stream(key, range).await?;
        let chunks: Vec<Bytes> = stream.try_collect().await?;
        Ok((size, chunks.concat()))
    }

    #[tokio::test]
    async fn bytes_come_back_as_they_went_in_whatever_their_number() {
        let folder = tempfile::tempdir().expect("a folder");
        let blobs = Blobs::local(&folder.path().join("deep/blobs")).expect("opens");
        for length in [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 5] {
            let bytes = pattern(length);
            let from = blobs.spool_dir().join("upload");
            std::fs::write(&from, &bytes).expect("writes");
            let key = format!("files/{length}");
            assert_eq!(blobs.put_file(&key, &from).await.expect("stores"), length as u64);
            assert!(blobs.bytes(&key).await.expect("reads") == bytes, "{length}");
            let (size, streamed) = collect(&blobs, &key, None).await.expect("streams");
            assert_eq!(size, length as u64);
            assert!(streamed == bytes, "{length}");
            let to = folder.path().join("copy");
            blobs.fetch_to(&key, &to).await.expect("fetches");
            assert!(std::fs::read(&to).expect("reads") == bytes, "{length}");
        }
        assert_eq!(blobs.list().await.expect("lists").len(), 6);
    }

    #[tokio::test]
    async fn a_range_is_cut_from_the_middle_and_says_the_whole_size() {
        let folder = tempfile::tempdir().expect("a folder");
        let blobs = Blobs::local(folder.path()).expect("opens");
        let bytes = pattern(2 * CHUNK + 10);
        let from = folder.path().join("upload");
        std::fs::write(&from, &bytes).expect("writes");
        blobs.put_file("files/a", &from).await.expect("stores");
        let middle = 5..CHUNK as u64 + 7;
        let (size, found) = collect(&blobs, "files/a", Some(middle)).await.expect("streams");
        assert_eq!(size, bytes.len() as u64);
        assert!(found == bytes[5..CHUNK + 7]);
        let beyond = size - 4..size + 100;
        let (_size, found) = collect(&blobs, "files/a", Some(beyond)).await.expect("streams");
        assert!(found == bytes[bytes.len() - 4..]);
        assert!(collect(&blobs, "files/a", Some(size..size + 1)).await.is_err());
    }

    #[tokio::test]
    async fn staged_bytes_appear_when_they_are_committed_and_not_before() {
        let folder = tempfile::tempdir().expect("a folder");
        let blobs = Blobs::local(folder.path()).expect("opens");
        let mut whole = Vec::new();
        let mut staged = blobs.stage("files/whole").await.expect("begins");
        for length in [3, 2 * CHUNK + 5, 0, CHUNK, 7] {
            let bytes = pattern(length);
            whole.extend_from_slice(&bytes);
            staged.write(bytes.into()).await.expect("writes");
        }
        assert!(matches!(blobs.bytes("files/whole").await, Err(BlobError::NotFound(_))));
        staged.commit().await.expect("appears");
        assert!(blobs.bytes("files/whole").await.expect("reads") == whole);

        let mut staged = blobs.stage("files/discarded").await.expect("begins");
        staged.write(pattern(2 * CHUNK).into()).await.expect("writes");
        staged.discard().await;
        assert_eq!(blobs.list().await.expect("lists"), ["files/whole"]);
        let files = std::fs::read_dir(folder.path().join("objects/files")).expect("lists");
        assert_eq!(files.count(), 1, "nothing is left staged");
    }

    /// Whether a blob's beginning can be read without asking the disk.
    fn is_in_memory(blobs: &Blobs, key: &str) -> bool {
        let file = std::fs::File::open(blobs.objects.join(key)).expect("opens");
        let (mut byte, no_wait) = ([0], rustix::io::ReadWriteFlags::NOWAIT);
        let into = &mut [std::io::IoSliceMut::new(&mut byte)];
        match rustix::io::preadv2(&file, into, 0, no_wait) {
            Ok(read) => read == 1,
            Err(rustix::io::Errno::AGAIN) => false,
            Err(error) => panic!("{error}"),
        }
    }

    #[tokio::test]
    async fn a_large_blob_does_not_stay_in_memory_and_a_small_one_does() {
        // On a disk, as this program is: the folder for temporary files need not be.
        let program = std::env::current_exe().expect("a path");
        let folder = tempfile::tempdir_in(program.parent().expect("a folder")).expect("made");
        let blobs = Blobs::local(folder.path()).expect("opens");
        let chunk = Bytes::from(pattern(CHUNK));
        for (key, chunks) in
            [("files/small", MAX_PAGE_CACHED / CHUNK), ("files/large", MAX_PAGE_CACHED / CHUNK + 1)]
        {
            let mut staged = blobs.stage(key).await.expect("begins");
            for _ in 0..chunks {
                staged.write(chunk.clone()).await.expect("writes");
            }
            staged.commit().await.expect("appears");
        }
        assert!(is_in_memory(&blobs, "files/small"));
        assert!(!is_in_memory(&blobs, "files/large"));
    }

    #[tokio::test]
    async fn what_is_not_there_is_said_to_be_not_there() {
        let folder = tempfile::tempdir().expect("a folder");
        let blobs = Blobs::local(folder.path()).expect("opens");
        let missing = "files/none";
        assert!(
            matches!(blobs.bytes(missing).await, Err(BlobError::NotFound(key)) if key == missing)
        );
        assert!(matches!(blobs.stream(missing, None).await, Err(BlobError::NotFound(_))));
        let to = folder.path().join("copy");
        assert!(matches!(blobs.fetch_to(missing, &to).await, Err(BlobError::NotFound(_))));
        assert!(!to.exists());
        blobs.delete(missing).await.expect("deleting nothing is fine");
        assert!(blobs.bytes("../outside").await.is_err());
    }

    #[tokio::test]
    async fn a_start_removes_what_was_half_written_and_nothing_else() {
        let folder = tempfile::tempdir().expect("a folder");
        let blobs = Blobs::local(folder.path()).expect("opens");
        let from = blobs.spool_dir().join("upload");
        std::fs::write(&from, b"whole").expect("writes");
        blobs.put_file("jobs/j/1/whole", &from).await.expect("stores");
        let staged = folder.path().join("objects/jobs/j/1/torn#7");
        std::fs::write(&staged, b"tor").expect("writes");
        assert_eq!(blobs.sweep_unfinished().await.expect("sweeps"), 2);
        assert!(!staged.exists() && !from.exists());
        assert_eq!(blobs.list().await.expect("lists"), ["jobs/j/1/whole"]);
    }

    #[test]
    fn a_full_disk_is_recognised_however_deep_the_storage_wraps_it() {
        let full = || std::io::Error::from(std::io::ErrorKind::StorageFull);
        let wrapped = object_store::Error::Generic {
            store: "LocalFileSystem",
            source: Box::new(object_store::Error::Generic {
                store: "inner",
                source: Box::new(full()),
            }),
        };
        assert!(matches!(storage_error("key", wrapped), BlobError::Full));
        assert!(matches!(local_error(Path::new("/x"), full()), BlobError::Full));
    }
}
