//! Buffers that go round: a matrix that is dropped gives its memory back for the next one, so that
//! after the first steps no step allocates or touches a fresh page.
//!
//! Batches differ in length from step to step. A buffer of up to twice the wanted length will do, and
//! where only shorter ones wait, one of them makes room for the longer: the pool never holds more
//! than about twice what was in use at once.

use std::collections::BTreeMap;
use std::ops::{Range, RangeInclusive};
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes of a cache line, and of the widest register: a load that lies across two of them costs two.
const LINE: usize = 64;

/// Floats that begin with a cache line.
#[derive(Default)]
struct Buffer {
    floats: Vec<f32>,
    /// Where the first line begins.
    start: usize,
    length: usize,
}

impl Buffer {
    /// So many zeros.
    fn new(length: usize) -> Self {
        let floats = vec![0.0; length + LINE / size_of::<f32>()];
        // Whoever allocates promises no more than what a float needs.
        let start = floats.as_ptr().align_offset(LINE).min(LINE / size_of::<f32>());
        Self { floats, start, length }
    }

    fn values(&self) -> &[f32] {
        &self.floats[self.start..self.start + self.length]
    }

    fn values_mut(&mut self) -> &mut [f32] {
        &mut self.floats[self.start..self.start + self.length]
    }
}

/// Buffers that wait for their next use, by length.
#[derive(Default)]
pub struct Pool {
    waiting: Mutex<Waiting>,
}

/// No list is empty.
type Waiting = BTreeMap<usize, Vec<Buffer>>;

/// The shortest buffer in a range of lengths.
fn pop(waiting: &mut Waiting, lengths: RangeInclusive<usize>) -> Option<Buffer> {
    let length = *waiting.range(lengths).next()?.0;
    pop_one(waiting, length)
}

/// The longest buffer in a range of lengths.
fn pop_longest(waiting: &mut Waiting, lengths: Range<usize>) -> Option<Buffer> {
    let length = *waiting.range(lengths).next_back()?.0;
    pop_one(waiting, length)
}

fn pop_one(waiting: &mut Waiting, length: usize) -> Option<Buffer> {
    let buffers = waiting.get_mut(&length)?;
    let buffer = buffers.pop();
    if buffers.is_empty() {
        waiting.remove(&length);
    }
    buffer
}

impl Pool {
    /// A matrix whose contents are whatever was there before: the caller overwrites every element.
    pub fn take(self: &Arc<Self>, rows: usize, columns: usize) -> Matrix {
        let class = class(rows * columns);
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let buffer = pop(&mut waiting, class..=2 * class).unwrap_or_else(|| {
            drop(pop_longest(&mut waiting, class / 2..class));
            Buffer::new(class)
        });
        drop(waiting);
        Matrix { rows, columns, buffer, pool: Arc::clone(self) }
    }

    /// As [`Pool::take`] for what stays: of zeros, and not a float longer than it needs.
    pub fn take_exactly(self: &Arc<Self>, rows: usize, columns: usize) -> Matrix {
        Matrix { rows, columns, buffer: Buffer::new(rows * columns), pool: Arc::clone(self) }
    }

    fn give(&self, buffer: Buffer) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.entry(buffer.length).or_default().push(buffer);
    }
}

/// The length of the buffer for `length` floats: the next eighth of a power of two, so that batches
/// of slightly different sizes share buffers.
fn class(length: usize) -> usize {
    let step = (length.next_power_of_two() / 16).max(64);
    length.next_multiple_of(step).max(64)
}

/// A matrix in host memory, row-major.
pub struct Matrix {
    rows: usize,
    columns: usize,
    /// At least `rows · columns` long.
    buffer: Buffer,
    pool: Arc<Pool>,
}

impl Matrix {
    /// Rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// The elements.
    pub fn values(&self) -> &[f32] {
        &self.buffer.values()[..self.rows * self.columns]
    }

    /// The elements.
    pub fn values_mut(&mut self) -> &mut [f32] {
        &mut self.buffer.values_mut()[..self.rows * self.columns]
    }

    /// The elements as words.
    pub fn words(&self) -> &[u32] {
        bytemuck::cast_slice(self.values())
    }

    /// The elements as words.
    pub fn words_mut(&mut self) -> &mut [u32] {
        bytemuck::cast_slice_mut(self.values_mut())
    }

    /// Puts the rows of `more` below its own.
    pub fn append(&mut self, more: &Matrix) {
        let length = self.rows * self.columns;
        let wanted = length + more.values().len();
        if wanted > self.buffer.length {
            // Twice as long, so that token after token costs no copy each time.
            let mut longer = self.pool.take(2 * (self.rows + more.rows), self.columns);
            longer.buffer.values_mut()[..length].copy_from_slice(self.values());
            std::mem::swap(&mut self.buffer, &mut longer.buffer);
        }
        self.buffer.values_mut()[length..wanted].copy_from_slice(more.values());
        self.rows += more.rows;
    }
}

impl Drop for Matrix {
    fn drop(&mut self) {
        self.pool.give(std::mem::take(&mut self.buffer));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_matrix_gives_its_memory_to_the_next() {
        let pool = Arc::new(Pool::default());
        let first = pool.take(10, 10);
        let place = first.values().as_ptr();
        drop(first);
        assert_eq!(pool.take(10, 10).values().as_ptr(), place);
    }

    #[test]
    fn every_matrix_begins_with_a_cache_line() {
        let pool = Arc::new(Pool::default());
        for rows in 1..50 {
            let (made, exact) = (pool.take(rows, 7), pool.take_exactly(rows, 1000));
            for matrix in [&made, &exact] {
                assert_eq!(matrix.values().as_ptr().addr() % LINE, 0);
                assert_eq!(matrix.values().len(), matrix.rows() * matrix.columns());
            }
        }
    }

    #[test]
    fn steps_of_all_lengths_hold_little_more_than_the_longest() {
        let pool = Arc::new(Pool::default());
        let mut state = 1u64;
        for _ in 0..500 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let rows = 1 + (state >> 33) as usize % 2000;
            let _in_use: Vec<Matrix> = (0..30).map(|_| pool.take(rows, 64)).collect();
        }
        let waiting = pool.waiting.lock().expect("no panic");
        let held: usize = waiting.iter().map(|(length, buffers)| length * buffers.len()).sum();
        assert!(held <= 2 * 30 * class(2000 * 64), "{held}");
    }

    #[test]
    fn appended_rows_stand_below() {
        let pool = Arc::new(Pool::default());
        let mut all = pool.take(0, 3);
        for step in 0..100 {
            let mut more = pool.take(1, 3);
            more.values_mut().fill(step as f32);
            all.append(&more);
        }
        assert_eq!(all.rows(), 100);
        assert!(all.values().chunks(3).enumerate().all(|(i, row)| row == [i as f32; 3]));
    }
}
