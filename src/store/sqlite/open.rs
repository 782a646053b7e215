//! Opening the SQLite store: the data folder's lock, the library's version, the connections'
//! settings, the schema.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sqlx::SqlitePool;
use sqlx::migrate::Migrator;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};

use super::SqliteStore;
use super::health::{self, LastProof};
use super::read_cache::{CommitCounter, ReadCache};
use super::reserve::Reserve;
use crate::store::StoreError;
use crate::util::clock::Clock;

/// Name of the database in the data folder.
pub const DATABASE_FILE: &str = "hone.db";

/// Name of the file in the data folder that the server using it holds locked.
pub const LOCK_FILE: &str = "lock";

/// The first SQLite whose write-ahead log cannot corrupt a database that several connections use.
const OLDEST_SQLITE: [u32; 3] = [3, 51, 3];

/// Only another program on the same file can make a write wait: this process has one connection that
/// writes.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// Longest wait for a connection. Far above what a queue of short transactions needs.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(30);

/// Connections that read side by side.
const READERS: u32 = 4;

/// A connection to a local file does not break while it is idle, and a test of it costs each statement a
/// second round trip to its thread.
const TEST_BEFORE_ACQUIRE: bool = false;

/// Embedded, so that the binary brings its schema along. A new migration file is only noticed when
/// this file is compiled again.
static MIGRATIONS: Migrator = sqlx::migrate!("migrations/sqlite");

/// How long a server waits for the folder: a command such as `hone keys` may have it for a moment.
const LOCK_TIMEOUT: Duration = Duration::from_secs(1);

/// How often it tries.
const LOCK_POLL: Duration = Duration::from_millis(50);

/// Opens the store in `data_dir`, which is made with its parents if it is not there.
///
/// Fails with [`StoreError::Unusable`] when another process uses the folder, when the folder
/// cannot be made, when SQLite is too old, or when a newer hone has changed the schema.
pub async fn open(data_dir: &Path, clock: Arc<dyn Clock>) -> Result<SqliteStore, StoreError> {
    make(data_dir)?;
    let began = Instant::now();
    let lock = loop {
        match lock(data_dir)? {
            FolderLock::Taken(file) => break file,
            FolderLock::HeldBy(holder) if began.elapsed() >= LOCK_TIMEOUT => {
                return Err(in_use(data_dir, &holder));
            }
            FolderLock::HeldBy(_) => tokio::time::sleep(LOCK_POLL).await,
        }
    };
    let (writer, options) = connect(data_dir).await?;
    migrate(&writer, data_dir).await?;
    with_readers(data_dir, (writer, options), clock, Some(lock)).await
}

/// Opens the store for a short command, whether a server has the folder or not.
///
/// SQLite lets several processes use a database in write-ahead mode, and a process that finds it locked waits.
/// What a process alone may do is left to the server: where one runs, the schema must be this
/// version's already.
///
/// Fails with [`StoreError::Unusable`] as [`open`] does, and when the running server is of another
/// version.
pub async fn open_beside_a_server(
    data_dir: &Path,
    clock: Arc<dyn Clock>,
) -> Result<SqliteStore, StoreError> {
    make(data_dir)?;
    match lock(data_dir)? {
        FolderLock::Taken(lock) => {
            let (writer, options) = connect(data_dir).await?;
            migrate(&writer, data_dir).await?;
            with_readers(data_dir, (writer, options), clock, Some(lock)).await
        }
        FolderLock::HeldBy(holder) => {
            let (writer, options) = connect(data_dir).await?;
            require_schema(&writer, data_dir, &holder).await?;
            with_readers(data_dir, (writer, options), clock, None).await
        }
    }
}

/// Makes the data folder, for the server's user alone: it holds secrets of webhooks and what people
/// train on. One that is there keeps its permissions.
fn make(data_dir: &Path) -> Result<(), StoreError> {
    let mut builder = std::fs::DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    let above = data_dir.parent().map_or(Ok(()), std::fs::create_dir_all);
    let made = above.and_then(|()| match builder.create(data_dir) {
        Err(_) if data_dir.is_dir() => Ok(()),
        made => made,
    });
    made.map_err(|error| {
        StoreError::Unusable(format!(
            "the data folder {} cannot be made: {error}",
            data_dir.display()
        ))
    })
}

/// The connection that writes, with the settings of all.
async fn connect(data_dir: &Path) -> Result<(SqlitePool, SqliteConnectOptions), StoreError> {
    let options = SqliteConnectOptions::new()
        .filename(data_dir.join(DATABASE_FILE))
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .foreign_keys(true)
        .busy_timeout(BUSY_TIMEOUT);
    let writer = SqlitePoolOptions::new()
        .max_connections(1)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .idle_timeout(None)
        .max_lifetime(None)
        .test_before_acquire(TEST_BEFORE_ACQUIRE)
        .after_release(|connection, _age| Box::pin(health::is_usable(connection)))
        .connect_with(options.clone())
        .await
        .map_err(|error| {
            StoreError::Unusable(format!(
                "the database {} cannot be opened: {error}",
                data_dir.join(DATABASE_FILE).display()
            ))
        })?;
    let version: String = sqlx::query_scalar("SELECT sqlite_version()").fetch_one(&writer).await?;
    check_version(&version)?;
    Ok((writer, options))
}

async fn with_readers(
    data_dir: &Path,
    (writer, options): (SqlitePool, SqliteConnectOptions),
    clock: Arc<dyn Clock>,
    lock: Option<File>,
) -> Result<SqliteStore, StoreError> {
    let readers = SqlitePoolOptions::new()
        // All are opened now and stay: one that is opened later needs a file descriptor that may be short then.
        .max_connections(READERS)
        .min_connections(READERS)
        .idle_timeout(None)
        .max_lifetime(None)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .test_before_acquire(TEST_BEFORE_ACQUIRE)
        .connect_with(options.pragma("query_only", "ON"))
        .await?;
    Ok(SqliteStore {
        writer,
        readers,
        clock,
        data_dir: data_dir.to_owned(),
        reserve: Reserve::take(data_dir),
        last_proof: LastProof::default(),
        commits: CommitCounter::default(),
        job_cache: ReadCache::new(),
        event_cache: ReadCache::new(),
        api_key_cache: ReadCache::new(),
        has_keys_cache: ReadCache::new(),
        lock,
    })
}

/// The outcome of trying to lock a folder.
enum FolderLock {
    /// It is this process's as long as the file is open.
    Taken(File),
    /// Another process has it, whose number this is, if it could be read.
    HeldBy(String),
}

/// Takes the folder for this process. The system frees the lock when the process ends, however it
/// ends.
fn lock(data_dir: &Path) -> Result<FolderLock, StoreError> {
    let path = data_dir.join(LOCK_FILE);
    let unusable =
        |error: std::io::Error| StoreError::Unusable(format!("{}: {error}", path.display()));
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(unusable)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            // Only for the message: an unreadable number leaves it out.
            let _read = file.read_to_string(&mut holder);
            return Ok(FolderLock::HeldBy(holder.trim().to_owned()));
        }
        Err(TryLockError::Error(error)) => return Err(unusable(error)),
    }
    file.set_len(0).map_err(unusable)?;
    writeln!(file, "{}", std::process::id()).map_err(unusable)?;
    Ok(FolderLock::Taken(file))
}

fn in_use(data_dir: &Path, holder: &str) -> StoreError {
    let holder = match holder {
        "" => String::new(),
        number => format!(" (process {number})"),
    };
    StoreError::Unusable(format!(
        "the data folder {} is in use by another hone server{holder}; stop it, or choose another \
         folder with --data-dir",
        data_dir.display()
    ))
}

/// Refuses a schema that is not exactly this version's: a server uses it, so it must not be changed.
async fn require_schema(
    writer: &SqlitePool,
    data_dir: &Path,
    holder: &str,
) -> Result<(), StoreError> {
    let applied: Result<Vec<i64>, sqlx::Error> =
        sqlx::query_scalar("SELECT version FROM _sqlx_migrations WHERE success ORDER BY version")
            .fetch_all(writer)
            .await;
    let known: Vec<i64> = MIGRATIONS.iter().map(|migration| migration.version).collect();
    // Without the table, the server has not come that far.
    if applied.is_ok_and(|applied| applied == known) {
        return Ok(());
    }
    Err(StoreError::Unusable(format!(
        "the hone server (process {holder}) that uses the data folder {} is of another version than \
         this command, or has just been started: use the same version, or try again",
        data_dir.display()
    )))
}

/// Refuses an SQLite older than [`OLDEST_SQLITE`].
fn check_version(version: &str) -> Result<(), StoreError> {
    let numbers: Vec<u32> = version.split('.').map_while(|part| part.parse().ok()).collect();
    if numbers.as_slice() >= OLDEST_SQLITE.as_slice() {
        return Ok(());
    }
    let oldest = OLDEST_SQLITE.map(|number| number.to_string()).join(".");
    Err(StoreError::Unusable(format!(
        "SQLite {version} can corrupt a database in write-ahead mode; hone needs {oldest} or newer"
    )))
}

/// Brings the schema up to date.
async fn migrate(writer: &SqlitePool, data_dir: &Path) -> Result<(), StoreError> {
    MIGRATIONS.run(writer).await.map_err(|error| {
        StoreError::Unusable(format!(
            "the database in {} cannot be brought to this version's schema: {error}",
            data_dir.display()
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_sqlite_that_corrupts_its_log_is_refused() {
        for good in ["3.51.3", "3.51.10", "3.52.0", "4.0.0"] {
            assert!(check_version(good).is_ok(), "{good} is good");
        }
        for bad in ["3.51.2", "3.40.1", "3.7.17", "", "nonsense"] {
            assert!(matches!(check_version(bad), Err(StoreError::Unusable(_))), "{bad} is refused");
        }
    }
}
