//! The health of the connection that writes: whether it may be used again, what its errors say of the disk, and
//! when it was last proved that writing works.

use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use sqlx::{Connection, SqliteConnection};

use crate::util::disk_space;

/// How long a proof that the database can be written to holds.
const PROOF: Duration = Duration::from_secs(1);

/// SQLite's primary result codes of a failed read or write, of a full disk or database, and of a file that
/// cannot be opened.
const IO_ERROR: u32 = 10;
const FULL: u32 = 13;
const CANNOT_OPEN: u32 = 14;

/// Whether a connection that comes back to the pool may be used again: no transaction is open on it. Only
/// the end of a rollback that is still under way tells.
pub(super) async fn is_usable(connection: &mut SqliteConnection) -> Result<bool, sqlx::Error> {
    if !connection.is_in_transaction() {
        return Ok(true);
    }
    connection.ping().await?;
    let is_usable = !connection.is_in_transaction();
    if !is_usable {
        tracing::warn!("a transaction ended badly: its connection to the database is replaced");
    }
    Ok(is_usable)
}

/// Whether the disk or the database is full by this error. SQLite says so of writes; where it syncs a file or
/// makes one, it says that this failed.
pub(super) fn is_full(error: &sqlx::Error, data_dir: &Path) -> bool {
    /// A disk with fewer bytes is full.
    const NOTHING: u64 = 1 << 20;
    let code = error.as_database_error().and_then(|error| error.code());
    let code: Option<u32> = code.and_then(|code| code.parse().ok());
    match code.map(|code| code & 0xff) {
        Some(FULL) => true,
        Some(IO_ERROR | CANNOT_OPEN) => disk_space::free(data_dir).is_ok_and(|free| free < NOTHING),
        _ => false,
    }
}

/// When it was last proved that the database can be written to, unless a write has failed since.
#[derive(Default)]
pub(super) struct LastProof(Mutex<Option<Instant>>);

impl LastProof {
    /// Notes a proof at this time, or that a write has failed.
    pub(super) fn set(&self, at: Option<Instant>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = at;
    }

    /// Whether it still holds.
    pub(super) fn is_recent(&self) -> bool {
        let at = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        at.is_some_and(|at| at.elapsed() < PROOF)
    }
}
