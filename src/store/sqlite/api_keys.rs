//! SQL of API keys, which other processes may write beside a server.

use async_trait::async_trait;
use sqlx::SqliteConnection;

use super::read_cache::LIFETIME;
use super::{SqliteStore, rows};
use crate::domain::api_key::{ApiKey, KeyDigest};
use crate::store::{KeyStore, RevokeOutcome, StoreError};

#[async_trait]
impl KeyStore for SqliteStore {
    async fn insert_api_key(&self, key: &ApiKey, digest: &KeyDigest) -> Result<(), StoreError> {
        self.write(async |tx, _now| insert_key(tx, key, digest).await).await?;
        self.until_a_server_sees_it().await;
        Ok(())
    }

    async fn api_key(&self, digest: &KeyDigest) -> Result<Option<ApiKey>, StoreError> {
        let now = self.commits.now();
        if let Some(key) = self.api_key_cache.get(digest, now) {
            return Ok(Some(key));
        }
        let row = sqlx::query("SELECT * FROM api_keys WHERE digest = $1")
            .bind(digest.as_str())
            .fetch_optional(&self.readers)
            .await?;
        let key = row.as_ref().map(rows::api_key).transpose()?;
        if let Some(key) = &key {
            self.api_key_cache.insert(digest.clone(), now, key.clone());
        }
        Ok(key)
    }

    async fn has_api_keys(&self) -> Result<bool, StoreError> {
        let now = self.commits.now();
        if let Some(are_there) = self.has_keys_cache.get(&(), now) {
            return Ok(are_there);
        }
        let found = sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM api_keys)");
        let are_there = found.fetch_one(&self.readers).await?;
        self.has_keys_cache.insert((), now, are_there);
        Ok(are_there)
    }

    async fn list_api_keys(&self) -> Result<Vec<ApiKey>, StoreError> {
        let found = sqlx::query("SELECT * FROM api_keys ORDER BY position");
        found.fetch_all(&self.readers).await?.iter().map(rows::api_key).collect()
    }

    async fn revoke_api_key(&self, id: &str) -> Result<RevokeOutcome, StoreError> {
        let outcome = self
            .write_from_reserve(async |tx, now| {
                let row = sqlx::query("SELECT * FROM api_keys WHERE id = $1")
                    .bind(id)
                    .fetch_optional(&mut *tx)
                    .await?;
                let Some(mut key) = row.as_ref().map(rows::api_key).transpose()? else {
                    return Ok(RevokeOutcome::NotFound);
                };
                if key.revoked_at.is_some() {
                    return Ok(RevokeOutcome::AlreadyRevoked(key));
                }
                key.revoked_at = Some(now);
                sqlx::query("UPDATE api_keys SET revoked_at = $1 WHERE id = $2")
                    .bind(key.revoked_at)
                    .bind(id)
                    .execute(tx)
                    .await?;
                Ok(RevokeOutcome::Revoked(key))
            })
            .await?;
        if let RevokeOutcome::Revoked(_) = outcome {
            self.until_a_server_sees_it().await;
        }
        Ok(outcome)
    }
}

impl SqliteStore {
    /// Waits until the cached values of a server that has the folder, if one does beside this process, are
    /// invalid.
    async fn until_a_server_sees_it(&self) {
        if self.lock.is_none() {
            tokio::time::sleep(LIFETIME).await;
        }
    }
}

async fn insert_key(
    connection: &mut SqliteConnection,
    key: &ApiKey,
    digest: &KeyDigest,
) -> Result<(), StoreError> {
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
    .execute(connection)
    .await?;
    Ok(())
}
