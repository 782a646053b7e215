//! Transactions that write, on the one connection that does.

use sqlx::SqliteConnection;

use super::SqliteStore;
use super::read_cache::CommitCounter;
use crate::store::StoreError;

impl SqliteStore {
    /// Runs `body` in a transaction, at the time that it gets, and commits the transaction. What was
    /// written is durable when this returns without an error; an error of `body` rolls it back. A body that
    /// returns early without an error commits what it has written by then.
    ///
    /// The transaction may write from its first statement on. One that starts as a reader and then
    /// writes can fail at that point, whatever the busy timeout.
    pub(super) async fn write<T>(
        &self,
        body: impl AsyncFnOnce(&mut SqliteConnection, i64) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        // Dropped after the transaction: that ends before it is counted, however it ends, and cached
        // values are invalid then.
        let _count = CountOnDrop(self.commits.clone());
        let mut transaction = self.writer.begin_with("BEGIN IMMEDIATE").await?;
        let outcome = body(&mut transaction, self.clock.now()).await?;
        transaction.commit().await?;
        Ok(outcome)
    }
}

struct CountOnDrop(CommitCounter);

impl Drop for CountOnDrop {
    fn drop(&mut self) {
        self.0.count();
    }
}
