//! Read caches, for clients that poll: hundreds may ask for the same job and the same page of its events
//! many times between two of its steps, and a read costs two context switches.
//!
//! A cached value is valid only while nothing was committed since it was read, and for [`LIFETIME`] at
//! most. A read after a write of this process has returned sees the write; a process that writes beside a
//! server waits that long before it reports success.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long a cached value is valid. A transaction whose request was dropped is counted at the drop, and
/// may still be committed right after.
pub(super) const LIFETIME: Duration = Duration::from_millis(100);

/// Most values in one cache.
const CAPACITY: usize = 256;

/// Counts the commits of this process.
#[derive(Debug, Clone, Default)]
pub(super) struct CommitCounter(Arc<AtomicU64>);

/// When a value was read.
#[derive(Debug, Clone, Copy)]
pub(super) struct ReadTime {
    commits: u64,
    at: Instant,
}

impl CommitCounter {
    /// Counts a transaction that may have been committed.
    pub(super) fn count(&self) {
        self.0.fetch_add(1, Ordering::Release);
    }

    /// The time of a read that begins now.
    pub(super) fn now(&self) -> ReadTime {
        ReadTime { commits: self.0.load(Ordering::Acquire), at: Instant::now() }
    }
}

/// Values of one kind, by key.
pub(super) struct ReadCache<K, V>(Mutex<HashMap<K, (ReadTime, V)>>);

impl<K: Eq + Hash, V: Clone> ReadCache<K, V> {
    /// An empty cache.
    pub(super) fn new() -> Self {
        Self(Mutex::default())
    }

    /// The value, if a read at `now` would find the same.
    pub(super) fn get<Q>(&self, key: &Q, now: ReadTime) -> Option<V>
    where
        K: Borrow<Q>,
        Q: Eq + Hash + ?Sized,
    {
        let values = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (read, value) = values.get(key)?;
        is_valid(*read, now).then(|| value.clone())
    }

    /// Adds a value that was read after `now` was taken, if there is room.
    pub(super) fn insert(&self, key: K, now: ReadTime, value: V) {
        let mut values = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if values.len() >= CAPACITY {
            values.retain(|_, (read, _)| is_valid(*read, now));
        }
        if values.len() < CAPACITY {
            values.insert(key, (now, value));
        }
    }
}

fn is_valid(read: ReadTime, now: ReadTime) -> bool {
    read.commits == now.commits && now.at.saturating_duration_since(read.at) < LIFETIME
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_valid_until_something_is_committed_or_it_is_old() {
        let (commits, cache) = (CommitCounter::default(), ReadCache::new());
        let read = commits.now();
        cache.insert("job", read, 1);
        assert_eq!(cache.get(&"job", commits.now()), Some(1));
        let later = ReadTime { at: read.at + LIFETIME, ..read };
        assert_eq!(cache.get(&"job", later), None);
        commits.count();
        assert_eq!(cache.get(&"job", commits.now()), None);
        // What was read before a commit does not become valid by being inserted after it.
        cache.insert("job", read, 1);
        assert_eq!(cache.get(&"job", commits.now()), None);
    }

    #[test]
    fn invalid_values_make_room() {
        let (commits, cache) = (CommitCounter::default(), ReadCache::new());
        for key in 0..2 * CAPACITY {
            cache.insert(key, commits.now(), ());
        }
        assert_eq!(cache.get(&0, commits.now()), Some(()));
        assert_eq!(cache.get(&CAPACITY, commits.now()), None, "there was no room");
        commits.count();
        cache.insert(CAPACITY, commits.now(), ());
        assert_eq!(cache.get(&CAPACITY, commits.now()), Some(()));
    }
}
