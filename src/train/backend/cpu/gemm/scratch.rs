//! Working memory of a task: each thread has its own and keeps it, so that no task allocates.

use std::cell::Cell;

thread_local! {
    static WORDS: Cell<Vec<u32>> = const { Cell::new(Vec::new()) };
}

/// Calls `task` with so many words of this thread, whose contents are whatever was there before. Not
/// from within itself.
pub fn with_words<T>(count: usize, task: impl FnOnce(&mut [u32]) -> T) -> T {
    WORDS.with(|words| {
        let mut mine = words.take();
        if mine.len() < count {
            mine.resize(count, 0);
        }
        let made = task(&mut mine[..count]);
        words.set(mine);
        made
    })
}
