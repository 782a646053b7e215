//! Transactions that write, on the one connection that does.

use std::ops::{Deref, DerefMut};

use sqlx::{Sqlite, SqliteConnection, SqlitePool, Transaction};

use super::read_cache::Commits;
use crate::store::StoreError;

/// A transaction that writes. However it ends, what was read before is not given again after.
pub(super) struct WriteTransaction {
    // Ends before it is counted: fields are dropped in this order.
    transaction: Transaction<'static, Sqlite>,
    counted: CountedWhenDropped,
}

impl WriteTransaction {
    /// Begins one that may write from its first statement on. A transaction that starts as a reader
    /// and then writes can fail at that point, whatever the busy timeout.
    pub(super) async fn begin(writer: &SqlitePool, commits: &Commits) -> Result<Self, StoreError> {
        let transaction = writer.begin_with("BEGIN IMMEDIATE").await?;
        Ok(Self { transaction, counted: CountedWhenDropped(commits.clone()) })
    }

    /// Commits it; durable when this returns without an error.
    pub(super) async fn commit(self) -> Result<(), sqlx::Error> {
        let Self { transaction, counted } = self;
        let outcome = transaction.commit().await;
        drop(counted);
        outcome
    }
}

impl Deref for WriteTransaction {
    type Target = SqliteConnection;

    fn deref(&self) -> &SqliteConnection {
        &self.transaction
    }
}

impl DerefMut for WriteTransaction {
    fn deref_mut(&mut self) -> &mut SqliteConnection {
        &mut self.transaction
    }
}

struct CountedWhenDropped(Commits);

impl Drop for CountedWhenDropped {
    fn drop(&mut self) {
        self.0.count();
    }
}
