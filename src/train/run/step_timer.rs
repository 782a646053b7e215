//! How long a step takes.

use std::time::{Duration, Instant};

/// Measures a step, without the time in which the run yielded to serving.
#[derive(Default)]
pub(super) struct StepTimer {
    began: Option<Instant>,
    yielded_before: Duration,
    took: Duration,
}

impl StepTimer {
    /// Starts now; the run has yielded for so long before.
    pub(super) fn start(yielded: Duration) -> Self {
        Self { began: Some(Instant::now()), yielded_before: yielded, took: Duration::ZERO }
    }

    /// Stops; the run has yielded for so long by now.
    pub(super) fn stop(&mut self, yielded: Duration) {
        if let Some(began) = self.began {
            self.took = began.elapsed().saturating_sub(yielded - self.yielded_before);
        }
    }

    /// What the step took; never zero.
    pub(super) fn seconds(&self) -> f64 {
        self.took.as_secs_f64().max(1e-9)
    }
}
