//! Work that threads take in turns: each takes the next piece when it is done with one, so that a thread
//! that is interrupted, or comes late, holds up the piece that it has and no other.
//!
//! A step of few tokens has hundreds of such regions, of some tens of microseconds each; rayon alone would
//! want two regions for what comes first and what comes then, and wait in each for the slowest thread.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;

/// Turns that a thread takes if all are equally fast. More of them cost more than they even out.
const TURNS: usize = 32;

/// Times that a thread looks whether what it waits for is there before it lets others go first.
const LOOKS: usize = 200;

/// Calls `first` with every number below `firsts`, and when all of these calls have returned, `then` with
/// ranges that make up `0..thens`; on the threads of rayon's pool. `first` must not share out work itself:
/// its thread could then take a turn of `then`, which would wait for it.
pub(super) fn take_turns(
    firsts: usize,
    first: impl Fn(usize) + Sync,
    thens: usize,
    then: impl Fn(Range<usize>) + Sync,
) {
    let threads = rayon::current_num_threads();
    let at_once = (thens / (TURNS * threads)).max(1);
    let (next, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let turns = firsts + thens.div_ceil(at_once);
    (0..threads.min(turns)).into_par_iter().with_max_len(1).for_each(|_thread| {
        loop {
            let turn = next.fetch_add(1, Ordering::Relaxed);
            if turn >= turns {
                return;
            }
            let Some(turn) = turn.checked_sub(firsts) else {
                let _counted = CountedWhenDropped(&done);
                first(turn);
                continue;
            };
            // All of them have been taken, so that they end without this thread.
            let mut looks = 0;
            while done.load(Ordering::Acquire) < firsts {
                looks += 1;
                if looks < LOOKS { std::hint::spin_loop() } else { std::thread::yield_now() }
            }
            then(turn * at_once..((turn + 1) * at_once).min(thens));
        }
    });
}

/// Counts a call that has ended, if only by a panic: others wait for it.
struct CountedWhenDropped<'a>(&'a AtomicUsize);

impl Drop for CountedWhenDropped<'_> {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_piece_is_done_once_and_what_comes_first_is_done_first() {
        for (firsts, thens) in [(0, 0), (0, 1), (3, 0), (1, 1), (5, 12), (2, 1000)] {
            let done = AtomicUsize::new(0);
            let seen: Vec<AtomicUsize> = (0..thens).map(|_| AtomicUsize::new(0)).collect();
            let first = |_| {
                std::thread::sleep(std::time::Duration::from_millis(1));
                done.fetch_add(1, Ordering::Relaxed);
            };
            take_turns(firsts, first, thens, |range| {
                assert_eq!(done.load(Ordering::Relaxed), firsts);
                for index in range {
                    seen[index].fetch_add(1, Ordering::Relaxed);
                }
            });
            assert_eq!(done.into_inner(), firsts);
            assert!(seen.into_iter().all(|count| count.into_inner() == 1), "{firsts}, {thens}");
        }
    }

    #[test]
    fn a_panic_is_passed_on_and_nobody_waits_for_ever() {
        let caught = std::panic::catch_unwind(|| {
            take_turns(2, |number| assert_eq!(number, 0, "the second"), 4, |_| ());
        });
        assert!(caught.is_err());
    }
}
