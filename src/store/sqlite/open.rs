//! Opening the SQLite store: the data folder's lock, the library's version, the connections'
//! settings, the schema.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use sqlx::SqlitePool;
use sqlx::migrate::Migrator;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};

use super::SqliteStore;
use crate::clock::Clock;
use crate::store::StoreError;

/// Name of the database in the data folder.
pub const DATABASE_FILE: &str = "hone.db";

/// Name of the file in the data folder that the server using it holds locked.
pub const LOCK_FILE: &str = "lock";

/// The first SQLite whose write-ahead log cannot corrupt a database that several connections use.
const OLDEST_SQLITE: [u32; 3] = [3, 51, 3];

/// Only another program on the same file can make us wait: writers of this process take turns.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// Longest wait for a turn on a connection. Far above what a queue of short transactions needs.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(30);

/// Connections that read side by side.
const READERS: u32 = 4;

/// Embedded, so that the binary brings its schema along. A new migration file is only noticed when
/// this file is compiled again.
static MIGRATIONS: Migrator = sqlx::migrate!("migrations/sqlite");

/// Opens the store in `data_dir`, which is made with its parents if it is not there.
///
/// Fails with [`StoreError::Unusable`] when another process uses the folder, when the folder
/// cannot be made, when SQLite is too old, or when a newer hone has changed the schema.
pub async fn open(data_dir: &Path, clock: Arc<dyn Clock>) -> Result<SqliteStore, StoreError> {
    std::fs::create_dir_all(data_dir).map_err(|error| {
        StoreError::Unusable(format!(
            "the data folder {} cannot be made: {error}",
            data_dir.display()
        ))
    })?;
    let lock = lock(data_dir)?;

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
    migrate(&writer, data_dir).await?;

    let readers = SqlitePoolOptions::new()
        .max_connections(READERS)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .connect_with(options.pragma("query_only", "ON"))
        .await?;
    Ok(SqliteStore { writer, readers, clock, _lock: lock })
}

/// Takes the folder for this process. The system frees the lock when the process ends, however it
/// ends.
fn lock(data_dir: &Path) -> Result<File, StoreError> {
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
            let holder = match holder.trim() {
                "" => String::new(),
                number => format!(" (process {number})"),
            };
            return Err(StoreError::Unusable(format!(
                "the data folder {} is in use by another hone server{holder}; stop it, or choose \
                 another folder with --data-dir",
                data_dir.display()
            )));
        }
        Err(TryLockError::Error(error)) => return Err(unusable(error)),
    }
    file.set_len(0).map_err(unusable)?;
    writeln!(file, "{}", std::process::id()).map_err(unusable)?;
    Ok(file)
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
