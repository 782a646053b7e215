//! What was read a moment ago, for clients that poll: hundreds may ask for the same job and the same page
//! of its events many times between two of its steps, and a read costs two changes of thread.
//!
//! A value is given again only while nothing was committed since it was read, and for [`LONGEST`] at
//! most. Whoever reads after a write of this process has returned sees it; a process that writes beside
//! a server waits as long before it says that it is done.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Longest time that a value is given again. A transaction that nobody waits for any more is counted
/// when it is given up, and may still be committed right after.
pub(super) const LONGEST: Duration = Duration::from_millis(100);

/// Most values of one kind.
const MOST: usize = 256;

/// Counts what this process commits.
#[derive(Debug, Clone, Default)]
pub(super) struct Commits(Arc<AtomicU64>);

/// When a value was read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moment {
    commits: u64,
    at: Instant,
}

impl Commits {
    /// Something may have been committed.
    pub(super) fn count(&self) {
        self.0.fetch_add(1, Ordering::Release);
    }

    /// Now: to be taken before a value is read.
    pub(super) fn now(&self) -> Moment {
        Moment { commits: self.0.load(Ordering::Acquire), at: Instant::now() }
    }
}

/// Values of one kind.
pub(super) struct ReadCache<K, V>(Mutex<HashMap<K, (Moment, V)>>);

impl<K: Eq + Hash, V: Clone> ReadCache<K, V> {
    /// None yet.
    pub(super) fn new() -> Self {
        Self(Mutex::default())
    }

    /// The value, if it is at `now` what a read would find.
    pub(super) fn get<Q>(&self, key: &Q, now: Moment) -> Option<V>
    where
        K: Borrow<Q>,
        Q: Eq + Hash + ?Sized,
    {
        let values = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (read, value) = values.get(key)?;
        is_current(*read, now).then(|| value.clone())
    }

    /// Keeps a value that was read after `now` was taken.
    pub(super) fn keep(&self, key: K, now: Moment, value: V) {
        let mut values = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if values.len() >= MOST {
            values.retain(|_, (read, _)| is_current(*read, now));
        }
        if values.len() < MOST {
            values.insert(key, (now, value));
        }
    }
}

fn is_current(read: Moment, now: Moment) -> bool {
    read.commits == now.commits && now.at.saturating_duration_since(read.at) < LONGEST
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_given_again_until_something_is_committed_or_it_is_old() {
        let (commits, recent) = (Commits::default(), ReadCache::new());
        let read = commits.now();
        recent.keep("job", read, 1);
        assert_eq!(recent.get(&"job", commits.now()), Some(1));
        let later = Moment { at: read.at + LONGEST, ..read };
        assert_eq!(recent.get(&"job", later), None);
        commits.count();
        assert_eq!(recent.get(&"job", commits.now()), None);
        // What was read before a commit does not become current by being kept after it.
        recent.keep("job", read, 1);
        assert_eq!(recent.get(&"job", commits.now()), None);
    }

    #[test]
    fn old_values_make_room() {
        let (commits, recent) = (Commits::default(), ReadCache::new());
        for key in 0..2 * MOST {
            recent.keep(key, commits.now(), ());
        }
        assert_eq!(recent.get(&0, commits.now()), Some(()));
        assert_eq!(recent.get(&MOST, commits.now()), None, "there was no room");
        commits.count();
        recent.keep(MOST, commits.now(), ());
        assert_eq!(recent.get(&MOST, commits.now()), Some(()));
    }
}
