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

    /// How many of `count` there were in a second; zero of a step that was not measured.
    pub(super) fn per_second(&self, count: u64) -> f64 {
        match self.took {
            Duration::ZERO => 0.0,
            took => count as f64 / took.as_secs_f64(),
        }
    }
}
