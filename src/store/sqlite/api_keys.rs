//! SQL of API keys, the one thing that other processes write beside a server.

use async_trait::async_trait;

use super::read_cache::LONGEST;
use super::{SqliteStore, rows};
use crate::domain::api_key::{ApiKey, KeyDigest};
use crate::store::{KeyStore, RevokeOutcome, StoreError};

#[async_trait]
impl KeyStore for SqliteStore {
    async fn insert_api_key(&self, key: &ApiKey, digest: &KeyDigest) -> Result<(), StoreError> {
        let mut transaction = self.begin_write().await?;
        sqlx::query(
            "INSERT INTO api_keys (id, project, name, digest, last_four, created_at, revoked_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7)",
        )
        .bind(&key.id)
        .bind(key.project.as_str())
        .bind(&key.name)
        .bind(digest.as_str())
        .bind(&key.last_four)
        .bind(key.created_at)
        .bind(key.revoked_at)
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await?;
        self.until_a_server_sees_it().await;
        Ok(())
    }

    async fn api_key(&self, digest: &KeyDigest) -> Result<Option<ApiKey>, StoreError> {
        let now = self.commits.now();
        if let Some(key) = self.recent_api_keys.get(digest, now) {
            return Ok(Some(key));
        }
        let row = sqlx::query("SELECT * FROM api_keys WHERE digest = $1")
            .bind(digest.as_str())
            .fetch_optional(&self.readers)
            .await?;
        let key = row.as_ref().map(rows::api_key).transpose()?;
        if let Some(key) = &key {
            self.recent_api_keys.keep(digest.clone(), now, key.clone());
        }
        Ok(key)
    }

    async fn has_api_keys(&self) -> Result<bool, StoreError> {
        let now = self.commits.now();
        if let Some(are_there) = self.recent_are_keys.get(&(), now) {
            return Ok(are_there);
        }
        let found = sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM api_keys)");
        let are_there = found.fetch_one(&self.readers).await?;
        self.recent_are_keys.keep((), now, are_there);
        Ok(are_there)
    }

    async fn list_api_keys(&self) -> Result<Vec<ApiKey>, StoreError> {
        let found = sqlx::query("SELECT * FROM api_keys ORDER BY position");
        found.fetch_all(&self.readers).await?.iter().map(rows::api_key).collect()
    }

    async fn revoke_api_key(&self, id: &str) -> Result<RevokeOutcome, StoreError> {
        let mut transaction = self.begin_write().await?;
        let row = sqlx::query("SELECT * FROM api_keys WHERE id = $1")
            .bind(id)
            .fetch_optional(&mut *transaction)
            .await?;
        let Some(mut key) = row.as_ref().map(rows::api_key).transpose()? else {
            return Ok(RevokeOutcome::NotFound);
        };
        if key.revoked_at.is_some() {
            return Ok(RevokeOutcome::AlreadyRevoked(key));
        }
        key.revoked_at = Some(self.clock.now());
        sqlx::query("UPDATE api_keys SET revoked_at = $1 WHERE id = $2")
            .bind(key.revoked_at)
            .bind(id)
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
        self.until_a_server_sees_it().await;
        Ok(RevokeOutcome::Revoked(key))
    }
}

impl SqliteStore {
    /// Waits until a server that has the folder, if one does beside this process, no longer gives what
    /// it read before.
    async fn until_a_server_sees_it(&self) {
        if self.lock.is_none() {
            tokio::time::sleep(LONGEST).await;
        }
    }
}
