//! Yielding to serving on the same device: inference goes first, and training never stands still for good.

use std::time::{Duration, Instant};

/// Longest pause before the next micro-batch.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// How often a paused run reads control messages.
const POLL: Duration = Duration::from_millis(2);

/// Whether micro-batches are paused, and for how long they have been.
#[derive(Debug, Default)]
pub(super) struct YieldToServing {
    /// Whether the supervisor has asked for a pause.
    pub is_paused: bool,
    /// Time waited so far.
    pub waited: Duration,
}

impl YieldToServing {
    /// Waits a moment while the run is paused, unless the next micro-batch is due: so long after `began`.
    pub fn waits(&mut self, began: Instant) -> bool {
        if !self.is_paused || began.elapsed() >= LONGEST_PAUSE {
            return false;
        }
        let poll = Instant::now();
        std::thread::sleep(POLL);
        self.waited += poll.elapsed();
        true
    }
}
