//! The rate limit of requests: a token bucket for each API key.

use std::num::NonZeroU32;
use std::time::Duration;

use governor::clock::{Clock, MonotonicClock};
use governor::middleware::NoOpMiddleware;
use governor::state::keyed::HashMapStateStore;
use governor::{Quota, RateLimiter};

type Buckets = RateLimiter<
    Option<String>,
    HashMapStateStore<Option<String>>,
    MonotonicClock,
    NoOpMiddleware<std::time::Instant>,
>;

/// Limits requests by key. Only valid keys are counted, so there are never more buckets than keys. Requests
/// without a key share one bucket.
pub struct RequestLimiter {
    buckets: Option<Buckets>,
}

impl RequestLimiter {
    /// A limit of requests per minute with each key; `None`: no limit.
    pub fn new(per_minute: Option<NonZeroU32>) -> Self {
        let quota = per_minute.map(Quota::per_minute);
        let clock = MonotonicClock;
        let buckets =
            quota.map(|quota| RateLimiter::new(quota, HashMapStateStore::default(), clock));
        Self { buckets }
    }

    /// Takes a token of the key with this id. The error is the time until the next token.
    pub(in crate::http) fn take(&self, key_id: Option<&str>) -> Result<(), Duration> {
        let Some(buckets) = &self.buckets else {
            return Ok(());
        };
        buckets
            .check_key(&key_id.map(str::to_owned))
            .map_err(|not_until| not_until.wait_time_from(MonotonicClock.now()))
    }
}
