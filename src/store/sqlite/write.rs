//! Transactions that write, on the one connection that does.
//!
//! A transaction that fails is rolled back. SQLite has done so by itself after some failures of the disk;
//! then the rollback fails, and the pool replaces the connection when it comes back
//! ([`super::health::is_usable`]).

use std::time::Instant;

use sqlx::SqliteConnection;

use super::SqliteStore;
use super::health::is_full;
use super::read_cache::CommitCounter;
use crate::store::StoreError;

impl SqliteStore {
    /// Runs `body` in a transaction, at the time that it gets, and commits the transaction. What was
    /// written is durable when this returns without an error; an error of `body` rolls it back. A body that
    /// returns early without an error commits what it has written by then.
    ///
    /// The transaction may write from its first statement on. One that starts as a reader and then
    /// writes can fail at that point, whatever the busy timeout.
    ///
    /// Fails with [`StoreError::Full`] when the disk is full, and as long as its reserve is given away.
    pub(super) async fn write<T>(
        &self,
        body: impl AsyncFnOnce(&mut SqliteConnection, i64) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        if !self.reserve.is_kept() {
            return Err(StoreError::Full);
        }
        self.transact(body).await
    }

    /// [`Self::write`] for what frees room, ends a job or gives it back: on a full disk it takes the
    /// reserve. `body` may run twice.
    pub(super) async fn write_from_reserve<T>(
        &self,
        body: impl AsyncFnOnce(&mut SqliteConnection, i64) -> Result<T, StoreError> + Clone,
    ) -> Result<T, StoreError> {
        match self.transact(body.clone()).await {
            Err(StoreError::Full) => {
                // Another transaction may have taken it at the same time.
                if self.reserve.give() {
                    tracing::warn!("the disk is full: the database's reserve is used");
                }
                self.transact(body).await
            }
            outcome => outcome,
        }
    }

    /// Fails unless the database can be written to: by a proof of a moment ago, or by a new one. Other
    /// transactions prove nothing: many write nothing.
    pub(super) async fn prove_writable(&self) -> Result<(), StoreError> {
        if self.reserve.is_kept() && self.last_proof.is_recent() {
            return Ok(());
        }
        let proved = self.write(async |tx, now| {
            let statement = "INSERT INTO write_checks (id, checked_at) VALUES (1, $1)
                             ON CONFLICT (id) DO UPDATE SET checked_at = excluded.checked_at";
            sqlx::query(statement).bind(now).execute(tx).await?;
            Ok(())
        });
        proved.await?;
        self.last_proof.set(Some(Instant::now()));
        Ok(())
    }

    async fn transact<T>(
        &self,
        body: impl AsyncFnOnce(&mut SqliteConnection, i64) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        // Dropped after the transaction: that ends before it is counted, however it ends, and cached
        // values are invalid then.
        let _count = CountOnDrop(self.commits.clone());
        let written = async {
            let mut transaction = self.writer.begin_with("BEGIN IMMEDIATE").await?;
            let outcome = body(&mut transaction, self.clock.now()).await?;
            transaction.commit().await?;
            Ok(outcome)
        };
        let written = written.await;
        written.map_err(|error| match error {
            StoreError::Database(error) => {
                self.last_proof.set(None);
                match is_full(&error, &self.data_dir) {
                    true => StoreError::Full,
                    false => StoreError::Database(error),
                }
            }
            other => other,
        })
    }
}

struct CountOnDrop(CommitCounter);

impl Drop for CountOnDrop {
    fn drop(&mut self) {
        self.0.count();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::store::sqlite;
    use crate::util::clock::SystemClock;

    #[tokio::test]
    async fn a_full_database_is_told_from_a_broken_one_and_is_written_to_again() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = sqlite::open(folder.path(), Arc::new(SystemClock)).await.expect("opens");
        // At most as many pages as there are.
        sqlx::query("PRAGMA max_page_count = 1").execute(&store.writer).await.expect("sets");
        let grow = async |tx: &mut SqliteConnection, _now| {
            sqlx::query("CREATE TABLE grown AS SELECT randomblob(100000)").execute(tx).await?;
            Ok(())
        };
        let full = store.write(grow).await;
        assert!(matches!(full, Err(StoreError::Full)), "{full:?}");
        assert!(store.reserve.give(), "a write of a client takes no room that is kept");
        let full = store.write(async |_tx, _now| Ok(())).await;
        assert!(matches!(full, Ok(())), "room is taken again where the disk has it: {full:?}");

        sqlx::query("PRAGMA max_page_count = 1").execute(&store.writer).await.expect("sets");
        assert!(store.write_from_reserve(grow).await.is_err());
        assert!(!folder.path().join("reserve").exists(), "the room was given");
        store.prove_writable().await.expect("writable");
        let wrong = store.write(async |tx, _now| {
            sqlx::query("INSERT INTO nothing VALUES (1)").execute(tx).await?;
            Ok(())
        });
        assert!(matches!(wrong.await, Err(StoreError::Database(_))));
    }
}
