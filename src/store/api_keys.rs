//! What the store promises of API keys.

use async_trait::async_trait;

use super::error::StoreError;
use crate::domain::api_key::{ApiKey, KeyDigest};

/// The outcome of revoking a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RevokeOutcome {
    /// It is refused from now on.
    Revoked(ApiKey),
    /// It was revoked before.
    AlreadyRevoked(ApiKey),
    /// No such key.
    NotFound,
}

/// Keys, by digest. Rows are never removed: a revoked key stays known as one.
#[async_trait]
pub trait KeyStore: Send + Sync {
    /// Adds a key.
    async fn insert_api_key(&self, key: &ApiKey, digest: &KeyDigest) -> Result<(), StoreError>;
    /// The key with this digest, revoked or not, as the last commit of any process has it.
    async fn api_key(&self, digest: &KeyDigest) -> Result<Option<ApiKey>, StoreError>;
    /// Whether there is any key, revoked or not: then every request needs one.
    async fn has_api_keys(&self) -> Result<bool, StoreError>;
    /// Every key, the oldest first.
    async fn list_api_keys(&self) -> Result<Vec<ApiKey>, StoreError>;
    /// Revokes a key.
    async fn revoke_api_key(&self, id: &str) -> Result<RevokeOutcome, StoreError>;
}
