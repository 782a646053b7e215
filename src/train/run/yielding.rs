//! Waiting while answers are being made on the same device: inference goes first, training never
//! stands still for good.

use std::time::{Duration, Instant};

/// Longest wait before the next micro-batch.
pub(super) const LONGEST: Duration = Duration::from_secs(10);

/// How often a run that waits listens.
const LOOK: Duration = Duration::from_millis(2);

/// Whether a run should wait, and how long it has.
#[derive(Debug, Default)]
pub(super) struct GiveWay {
    /// Whether it was asked to.
    pub asked: bool,
    /// Time waited so far.
    pub waited: Duration,
}

impl GiveWay {
    /// Waits a moment, if it is asked to and has not waited for so long since `began` that a
    /// micro-batch is due.
    pub fn waits(&mut self, began: Instant) -> bool {
        if !self.asked || began.elapsed() >= LONGEST {
            return false;
        }
        let look = Instant::now();
        std::thread::sleep(LOOK);
        self.waited += look.elapsed();
        true
    }
}
