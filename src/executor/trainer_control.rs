//! What a running trainer is told, and by when it must have ended: a cancel or a pause that the user
//! requests, the stop of a shutdown, and when to yield to serving.

use std::time::Duration;

use tokio::time::Instant;

use super::context::Timeouts;
use super::trainer::Trainer;
use crate::train::protocol::Control;

/// How a trainer was told to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EndRequest {
    /// It was not told to end.
    None,
    /// To stop at a checkpoint, for a shutdown.
    Stop,
    /// To stop at a checkpoint, for a pause.
    Pause,
    /// To end; the job is cancelled.
    Cancel,
}

/// The controls that were sent to a trainer.
#[derive(Debug, Clone, Copy)]
pub(super) struct ControlsSent {
    timeouts: Timeouts,
    cancel: bool,
    pause: bool,
    stop: bool,
    /// When the trainer must have ended.
    deadline: Option<Instant>,
}

impl ControlsSent {
    /// None yet.
    pub(super) fn none(timeouts: Timeouts) -> Self {
        Self { timeouts, cancel: false, pause: false, stop: false, deadline: None }
    }

    /// The strongest request to end that was sent: a cancel goes before a pause, and a pause before a
    /// stop.
    pub(super) fn end_request(&self) -> EndRequest {
        match self {
            Self { cancel: true, .. } => EndRequest::Cancel,
            Self { pause: true, .. } => EndRequest::Pause,
            Self { stop: true, .. } => EndRequest::Stop,
            Self { .. } => EndRequest::None,
        }
    }

    /// Whether a stop was sent for a shutdown.
    pub(super) fn is_stop_sent(&self) -> bool {
        self.stop
    }

    /// Tells the trainer to end: its job is cancelled.
    pub(super) async fn cancel(&mut self, trainer: &mut Trainer) {
        self.cancel = true;
        self.end_within(self.timeouts.cancel);
        trainer.send(Control::Cancel).await;
    }

    /// Tells the trainer to stop at a checkpoint: its job is paused.
    pub(super) async fn pause(&mut self, trainer: &mut Trainer) {
        self.pause = true;
        self.end_within(self.timeouts.pause);
        trainer.send(Control::Stop).await;
    }

    /// Tells the trainer to stop at a checkpoint: the server shuts down.
    pub(super) async fn stop(&mut self, trainer: &mut Trainer) {
        self.stop = true;
        self.end_within(self.timeouts.stop);
        trainer.send(Control::Stop).await;
    }

    /// Waits until the trainer should have ended; for ever when it was not told to.
    pub(super) async fn overdue(&self) {
        match self.deadline {
            Some(deadline) => tokio::time::sleep_until(deadline).await,
            None => std::future::pending().await,
        }
    }

    /// An earlier deadline holds.
    fn end_within(&mut self, timeout: Duration) {
        let deadline = Instant::now() + timeout;
        self.deadline = Some(self.deadline.map_or(deadline, |earlier| earlier.min(deadline)));
    }
}

/// Tells the trainer whether to pause between micro-batches, because requests are being answered on its
/// device.
pub(super) async fn yield_to_serving(trainer: &mut Trainer, is_serving: bool) {
    let control = if is_serving { Control::PauseMicroBatches } else { Control::ResumeMicroBatches };
    trainer.send(control).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cancel_goes_before_a_pause_and_a_pause_before_a_stop() {
        let none = ControlsSent::none(Timeouts::default());
        let sent = |cancel, pause, stop| ControlsSent { cancel, pause, stop, ..none }.end_request();
        assert_eq!(none.end_request(), EndRequest::None);
        assert_eq!(sent(false, false, true), EndRequest::Stop);
        assert_eq!(sent(false, true, true), EndRequest::Pause);
        assert_eq!(sent(true, true, true), EndRequest::Cancel);
        assert_eq!(sent(true, false, false), EndRequest::Cancel);
    }

    #[test]
    fn the_earliest_deadline_holds() {
        let mut sent = ControlsSent::none(Timeouts::default());
        sent.end_within(Duration::from_secs(10));
        let first = sent.deadline;
        sent.end_within(Duration::from_secs(20));
        assert_eq!(sent.deadline, first);
        sent.end_within(Duration::from_secs(1));
        assert!(sent.deadline < first);
    }
}
