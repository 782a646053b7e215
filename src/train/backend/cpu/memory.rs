//! Buffers that go round: a matrix that is dropped gives its memory back for the next one, so that
//! after the first step no step allocates or touches a fresh page.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Buffers that wait for their next use, by length.
#[derive(Default)]
pub struct Pool {
    waiting: Mutex<BTreeMap<usize, Vec<Vec<f32>>>>,
}

impl Pool {
    /// A matrix whose contents are whatever was there before: the caller overwrites every element.
    pub fn take(self: &Arc<Self>, rows: usize, columns: usize) -> Matrix {
        let class = class(rows * columns);
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let reused = waiting.get_mut(&class).and_then(Vec::pop);
        drop(waiting);
        let buffer = reused.unwrap_or_else(|| vec![0.0; class]);
        Matrix { rows, columns, buffer, pool: Arc::clone(self) }
    }

    fn give(&self, buffer: Vec<f32>) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.entry(buffer.len()).or_default().push(buffer);
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
    buffer: Vec<f32>,
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
        &self.buffer[..self.rows * self.columns]
    }

    /// The elements.
    pub fn values_mut(&mut self) -> &mut [f32] {
        &mut self.buffer[..self.rows * self.columns]
    }

    /// Puts the rows of `more` below its own.
    pub fn append(&mut self, more: &Matrix) {
        let length = self.rows * self.columns;
        let wanted = length + more.values().len();
        if wanted > self.buffer.len() {
            // Twice as long, so that token after token costs no copy each time.
            let mut longer = self.pool.take(2 * (self.rows + more.rows), self.columns);
            longer.buffer[..length].copy_from_slice(self.values());
            std::mem::swap(&mut self.buffer, &mut longer.buffer);
        }
        self.buffer[length..wanted].copy_from_slice(more.values());
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
