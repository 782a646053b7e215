//! Time as the product sees it: whole Unix seconds, from a clock that tests can set.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// Source of the current time, in whole seconds since 1970-01-01 UTC.
pub trait Clock: Send + Sync {
    /// Now, in Unix seconds.
    fn now(&self) -> i64;
}

/// The machine's clock.
#[derive(Debug, Default, Clone, Copy)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> i64 {
        // A clock before 1970 is a broken machine; zero keeps ordering by id usable.
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64)
    }
}

/// The machine's clock is before 1970, and times cannot be written.
#[derive(Debug, thiserror::Error)]
#[error(
    "this machine's clock is set to a time before 1970: set it, for example with `date` or NTP, and try again"
)]
pub struct ClockNotSet;

/// Whether the machine's clock can be used: the times of tokens, certificates and ids begin in 1970.
///
/// # Errors
/// When it is before 1970.
pub fn check() -> Result<(), ClockNotSet> {
    SystemTime::now().duration_since(UNIX_EPOCH).map(|_| ()).map_err(|_before| ClockNotSet)
}

/// A clock that stands still until it is moved; for tests of leases and expiry.
#[derive(Debug, Default, Clone)]
pub struct ManualClock(Arc<AtomicI64>);

impl ManualClock {
    /// A clock that shows `now`.
    pub fn at(now: i64) -> Self {
        Self(Arc::new(AtomicI64::new(now)))
    }

    /// Moves the clock forward by `seconds`.
    pub fn advance(&self, seconds: i64) {
        self.0.fetch_add(seconds, Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> i64 {
        self.0.load(Ordering::SeqCst)
    }
}
