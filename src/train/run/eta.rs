//! How long a run still takes, from what it has done so far.

use std::time::Instant;

/// What the rest should take: what this process has done, in floating-point operations and seconds,
/// looks and checkpoints among them, and what is left to do.
pub(super) struct Speed {
    began: Instant,
    done: f64,
    left: f64,
}

impl Speed {
    /// Of work that takes so many operations.
    pub(super) fn new(left: f64) -> Self {
        Self { began: Instant::now(), done: 0.0, left }
    }

    /// Takes in what has just been done.
    pub(super) fn has_done(&mut self, cost: f64) {
        self.done += cost;
        self.left = (self.left - cost).max(0.0);
    }

    /// What the rest takes at the speed so far.
    pub(super) fn seconds_left(&self) -> f64 {
        self.left * self.began.elapsed().as_secs_f64() / self.done.max(1.0)
    }
}

/// Which texts the frozen blocks need not run over again in this process, as far as costs tell.
#[derive(Debug, Clone)]
pub(super) struct Kept {
    /// Whether there is room for all texts. Where there is not, none counts.
    fits: bool,
    /// Whether each training example has been seen.
    examples: Vec<bool>,
    validation: bool,
}

impl Kept {
    /// Of a run over so many examples, with `room` for tokens of which all its texts have `tokens`;
    /// `has_seen` says whether each text has been seen before the first step.
    pub(super) fn new(room: u64, tokens: usize, examples: usize, has_seen: bool) -> Self {
        let fits = tokens as u64 <= room;
        let has_seen = has_seen && fits;
        Self { fits, examples: vec![has_seen; examples], validation: has_seen }
    }

    /// Sees an example; whether it was kept before.
    pub(super) fn sees(&mut self, index: usize) -> bool {
        std::mem::replace(&mut self.examples[index], self.fits)
    }

    /// The same of the validation file.
    pub(super) fn sees_validation(&mut self) -> bool {
        std::mem::replace(&mut self.validation, self.fits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_what_has_been_seen_where_all_fits() {
        let mut kept = Kept::new(100, 100, 2, false);
        assert_eq!([kept.sees(1), kept.sees(1), kept.sees(0)], [false, true, false]);
        assert_eq!([kept.sees_validation(), kept.sees_validation()], [false, true]);
        let mut references = Kept::new(100, 100, 2, true);
        assert!(references.sees(1) && references.sees_validation());
        for has_seen in [false, true] {
            let mut small = Kept::new(99, 100, 2, has_seen);
            assert_eq!([small.sees(1), small.sees(1), small.sees_validation()], [false; 3]);
        }
    }
}
