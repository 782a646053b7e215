//! A parallel loop with a shared work queue: each thread takes the next task when it is done with one, so
//! that a thread that is interrupted or late delays its own task only.
//!
//! A decode step has hundreds of parallel regions of some tens of microseconds each. Work in two phases
//! would take two regions of rayon, each of which waits for the slowest thread; here it takes one.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;

/// Tasks of the second phase for each thread. More tasks cost more than their balance gains.
const TASKS_PER_THREAD: usize = 32;

/// Times that a thread checks whether the first phase has ended before it yields to others.
const SPINS: usize = 200;

/// Runs two phases on the threads of rayon's pool: calls `first` with every number below `firsts`, and when
/// all of these calls have returned, `then` with ranges that make up `0..thens`. `first` must not start
/// parallel work itself: its thread could then take a task of the second phase and wait for itself.
pub(super) fn run_in_two_phases(
    firsts: usize,
    first: impl Fn(usize) + Sync,
    thens: usize,
    then: impl Fn(Range<usize>) + Sync,
) {
    let threads = rayon::current_num_threads();
    let at_once = (thens / (TASKS_PER_THREAD * threads)).max(1);
    let (next, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let tasks = firsts + thens.div_ceil(at_once);
    (0..threads.min(tasks)).into_par_iter().with_max_len(1).for_each(|_thread| {
        loop {
            let task = next.fetch_add(1, Ordering::Relaxed);
            if task >= tasks {
                return;
            }
            let Some(task) = task.checked_sub(firsts) else {
                let _guard = FirstPhaseTask(&done);
                first(task);
                continue;
            };
            // Other threads have taken all tasks of the first phase, so they end without this thread.
            let mut spins = 0;
            while done.load(Ordering::Acquire) < firsts {
                spins += 1;
                if spins < SPINS { std::hint::spin_loop() } else { std::thread::yield_now() }
            }
            then(task * at_once..((task + 1) * at_once).min(thens));
        }
    });
}

/// Counts a task of the first phase when it ends, even by a panic: others wait for it.
struct FirstPhaseTask<'a>(&'a AtomicUsize);

impl Drop for FirstPhaseTask<'_> {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once_and_the_first_phase_ends_first() {
        for (firsts, thens) in [(0, 0), (0, 1), (3, 0), (1, 1), (5, 12), (2, 1000)] {
            let done = AtomicUsize::new(0);
            let seen: Vec<AtomicUsize> = (0..thens).map(|_| AtomicUsize::new(0)).collect();
            let first = |_| {
                std::thread::sleep(std::time::Duration::from_millis(1));
                done.fetch_add(1, Ordering::Relaxed);
            };
            run_in_two_phases(firsts, first, thens, |range| {
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
    fn a_panic_is_passed_on_and_no_thread_waits_for_ever() {
        let caught = std::panic::catch_unwind(|| {
            run_in_two_phases(2, |number| assert_eq!(number, 0, "the second"), 4, |_| ());
        });
        assert!(caught.is_err());
    }
}
