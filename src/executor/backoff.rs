//! Waiting after the store has failed: twice as long each time.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(30);

/// The next wait.
pub(super) struct Backoff(Duration);

impl Backoff {
    /// Nothing has failed yet.
    pub(super) fn new() -> Self {
        Self(FIRST)
    }

    /// The store works again.
    pub(super) fn reset(&mut self) {
        self.0 = FIRST;
    }

    /// Waits; `false` when the shutdown came first.
    pub(super) async fn wait(&mut self, shutdown: &CancellationToken) -> bool {
        let is_over = shutdown.run_until_cancelled(tokio::time::sleep(self.0)).await.is_some();
        self.0 = (self.0 * 2).min(LONGEST);
        is_over
    }
}
