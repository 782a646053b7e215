//! API keys that were looked up a moment ago, so that a client which polls does not cost a read of the
//! database for each request.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use crate::api_key::{ApiKey, KeyDigest, REMEMBERED};
use crate::store::{Store, StoreError};

/// Most keys.
const MOST: usize = 1024;

/// Keys that let in, and whether there are any. What another process changes counts after
/// [`REMEMBERED`] at the latest, for which the commands that change something wait.
#[derive(Default)]
pub struct KnownKeys(Mutex<Known>);

#[derive(Default)]
struct Known {
    /// When each was looked up.
    keys: HashMap<KeyDigest, (Instant, ApiKey)>,
    /// When there was none in the whole store.
    no_keys: Option<Instant>,
}

impl KnownKeys {
    /// The key of this digest, if it lets in.
    pub(super) async fn find(
        &self,
        store: &dyn Store,
        digest: KeyDigest,
    ) -> Result<Option<ApiKey>, StoreError> {
        let now = Instant::now();
        let known = self.known(|known| known.keys.get(&digest).cloned());
        if let Some((since, key)) = known
            && is_fresh(since, now)
        {
            return Ok(Some(key));
        }
        let found = store.api_key(&digest).await?.filter(|key| key.revoked_at.is_none());
        self.known(|known| match &found {
            Some(key) => {
                if known.keys.len() >= MOST {
                    known.keys.retain(|_, (since, _)| is_fresh(*since, now));
                }
                if known.keys.len() < MOST {
                    known.keys.insert(digest, (now, key.clone()));
                }
            }
            None => _ = known.keys.remove(&digest),
        });
        Ok(found)
    }

    /// Whether there is a key, so that one is demanded.
    pub(super) async fn are_demanded(&self, store: &dyn Store) -> Result<bool, StoreError> {
        let now = Instant::now();
        if self.known(|known| known.no_keys).is_some_and(|since| is_fresh(since, now)) {
            return Ok(false);
        }
        let are_there = store.has_api_keys().await?;
        self.known(|known| known.no_keys = (!are_there).then_some(now));
        Ok(are_there)
    }

    fn known<T>(&self, look: impl FnOnce(&mut Known) -> T) -> T {
        look(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn is_fresh(since: Instant, now: Instant) -> bool {
    now.saturating_duration_since(since) < REMEMBERED
}
