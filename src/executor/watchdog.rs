//! The watchdog of a trainer: whether it still lives, and whether its run still moves at the pace that it has
//! shown. One that is stopped or hangs would hold the queue for ever.

use std::time::Duration;

use tokio::time::Instant;

use super::context::Timeouts;

/// So many times as long as the longest pause between two signs of work is too long.
const FACTOR: u32 = 20;

/// What a trainer does not do any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stall {
    /// It says nothing: it is stopped, or the machine does not run it.
    Silent(Duration),
    /// It lives, and its run does not move.
    Stuck(Duration),
}

impl Stall {
    /// For the user.
    pub(super) fn describe(self, step: Option<u64>) -> String {
        let after = step.map_or_else(String::new, |step| format!(" after step {step}"));
        match self {
            Self::Silent(time) => format!(
                "the trainer said nothing for {} s{after} and was ended (step_stalled)",
                time.as_secs()
            ),
            Self::Stuck(time) => format!(
                "the run did not move for {} s{after} and was ended (step_stalled)",
                time.as_secs()
            ),
        }
    }
}

/// Watches one trainer. Each method gets the time.
pub(super) struct Watchdog {
    timeouts: Timeouts,
    heard_at: Instant,
    moved_at: Instant,
    asked: u64,
    /// The longest pause between two signs of work while steps were done.
    longest: Duration,
    /// Whether steps are being done. Before and after, single works may take long: a model is loaded, a
    /// file is tokenised, the result is checked.
    is_stepping: bool,
}

impl Watchdog {
    /// A trainer that has been started at `now`.
    pub(super) fn new(timeouts: Timeouts, now: Instant) -> Self {
        Self {
            timeouts,
            heard_at: now,
            moved_at: now,
            asked: 0,
            longest: Duration::ZERO,
            is_stepping: false,
        }
    }

    /// A message has come, and took so long to be handled: later ones waited meanwhile.
    pub(super) fn heard(&mut self, now: Instant, took: Duration) {
        self.heard_at = now;
        self.moved_at += took;
    }

    /// A pulse has come: the run has asked for controls so often.
    pub(super) fn pulse(&mut self, now: Instant, asked: u64) {
        if asked != self.asked {
            self.asked = asked;
            self.moved(now);
        }
    }

    /// A step is done, of so many.
    pub(super) fn step(&mut self, now: Instant, step: u64, total_steps: Option<u64>) {
        self.moved(now);
        self.is_stepping = Some(step) != total_steps;
    }

    /// Waits until the trainer has stalled.
    pub(super) async fn stalled(&self) -> Stall {
        let (at, stall) = self.next_stall();
        tokio::time::sleep_until(at).await;
        stall
    }

    /// When the trainer will have stalled, unless it moves before, and how.
    fn next_stall(&self) -> (Instant, Stall) {
        let silence = self.timeouts.silence;
        let pause = match self.is_stepping {
            true => self.timeouts.stuck.max(self.longest * FACTOR),
            false => self.timeouts.stuck_outside,
        };
        let (silent_at, stuck_at) = (self.heard_at + silence, self.moved_at + pause);
        match silent_at <= stuck_at {
            true => (silent_at, Stall::Silent(silence)),
            false => (stuck_at, Stall::Stuck(pause)),
        }
    }

    fn moved(&mut self, now: Instant) {
        if self.is_stepping {
            self.longest = self.longest.max(now - self.moved_at);
        }
        self.moved_at = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    const TIMEOUTS: Timeouts = Timeouts {
        cancel: seconds(10),
        stop: seconds(20),
        pause: seconds(600),
        exit: seconds(10),
        silence: seconds(60),
        stuck: seconds(300),
        stuck_outside: seconds(3600),
    };

    /// Lets a trainer live until `end`, with a pulse each second; the stall, if one comes.
    fn live(watchdog: &mut Watchdog, now: &mut Instant, time: Duration) -> Option<Stall> {
        let end = *now + time;
        while *now < end {
            *now += seconds(1);
            let (at, stall) = watchdog.next_stall();
            if at <= *now {
                return Some(stall);
            }
            watchdog.heard(*now, Duration::ZERO);
            watchdog.pulse(*now, watchdog.asked);
        }
        None
    }

    #[test]
    fn a_trainer_that_says_nothing_is_silent_and_one_whose_run_stands_still_is_stuck() {
        let mut now = Instant::now();
        let mut watchdog = Watchdog::new(TIMEOUTS, now);
        assert_eq!(live(&mut watchdog, &mut now, seconds(3000)), None, "a long file is tokenised");
        watchdog.step(now, 1, Some(10));
        let stuck = live(&mut watchdog, &mut now, seconds(1000));
        assert_eq!(stuck, Some(Stall::Stuck(seconds(300))));
        let watchdog = Watchdog::new(TIMEOUTS, now);
        assert_eq!(watchdog.next_stall(), (now + seconds(60), Stall::Silent(seconds(60))));
    }

    #[test]
    fn a_slow_job_has_the_time_that_its_own_pace_needs() {
        let mut now = Instant::now();
        let mut watchdog = Watchdog::new(TIMEOUTS, now);
        watchdog.step(now, 1, Some(10));
        // A micro-batch of a hundred seconds, then one that takes ten times as long.
        assert_eq!(live(&mut watchdog, &mut now, seconds(100)), None);
        watchdog.pulse(now, 1);
        assert_eq!(live(&mut watchdog, &mut now, seconds(1000)), None);
        watchdog.pulse(now, 2);
        watchdog.step(now, 10, Some(10));
        assert_eq!(live(&mut watchdog, &mut now, seconds(3000)), None, "the result is checked");
        let stuck = live(&mut watchdog, &mut now, seconds(3000));
        assert_eq!(stuck, Some(Stall::Stuck(seconds(3600))));
    }
}
