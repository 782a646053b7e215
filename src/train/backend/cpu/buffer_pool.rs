//! Memory that is used again. A matrix that is dropped releases its buffer to the pool, so that after the
//! first steps no step allocates memory or touches a fresh page. Scratch memory belongs to a thread.
//!
//! Batches differ in length from step to step. A free buffer of up to twice the wanted length is used.
//! Where only shorter ones are free, one of them is freed for a new one, so that the pool never holds more
//! than about twice what was in use at once.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::ops::{Range, RangeInclusive};
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes of a cache line, and of the widest register. A load that crosses a line costs two loads.
const CACHE_LINE: usize = 64;

/// Floats aligned to a cache line.
#[derive(Default)]
struct Buffer {
    floats: Vec<f32>,
    /// Where the first line begins.
    start: usize,
    length: usize,
}

impl Buffer {
    /// A buffer of zeros.
    fn new(length: usize) -> Self {
        let floats = vec![0.0; length + CACHE_LINE / size_of::<f32>()];
        // The allocator aligns to a float only.
        let start = floats.as_ptr().align_offset(CACHE_LINE).min(CACHE_LINE / size_of::<f32>());
        Self { floats, start, length }
    }

    fn values(&self) -> &[f32] {
        &self.floats[self.start..self.start + self.length]
    }

    fn values_mut(&mut self) -> &mut [f32] {
        &mut self.floats[self.start..self.start + self.length]
    }
}

/// Buffers that are free to be used again.
#[derive(Default)]
pub struct BufferPool {
    free: Mutex<FreeLists>,
}

/// Free buffers by length; no list is empty.
type FreeLists = BTreeMap<usize, Vec<Buffer>>;

/// The shortest free buffer in a range of lengths.
fn pop_shortest(free: &mut FreeLists, lengths: RangeInclusive<usize>) -> Option<Buffer> {
    let length = *free.range(lengths).next()?.0;
    pop_one(free, length)
}

/// The longest free buffer in a range of lengths.
fn pop_longest(free: &mut FreeLists, lengths: Range<usize>) -> Option<Buffer> {
    let length = *free.range(lengths).next_back()?.0;
    pop_one(free, length)
}

fn pop_one(free: &mut FreeLists, length: usize) -> Option<Buffer> {
    let buffers = free.get_mut(&length)?;
    let buffer = buffers.pop();
    if buffers.is_empty() {
        free.remove(&length);
    }
    buffer
}

impl BufferPool {
    /// A matrix whose contents are undefined: the caller overwrites every element.
    pub fn acquire(self: &Arc<Self>, rows: usize, columns: usize) -> CpuMatrix {
        let class = size_class(rows * columns);
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let buffer = pop_shortest(&mut free, class..=2 * class).unwrap_or_else(|| {
            drop(pop_longest(&mut free, class / 2..class));
            Buffer::new(class)
        });
        drop(free);
        CpuMatrix { rows, columns, buffer, pool: Arc::clone(self) }
    }

    /// A matrix of zeros for as long as the model is loaded: its buffer is not longer than it needs.
    pub fn allocate_exact(self: &Arc<Self>, rows: usize, columns: usize) -> CpuMatrix {
        CpuMatrix { rows, columns, buffer: Buffer::new(rows * columns), pool: Arc::clone(self) }
    }

    /// Puts a buffer into the free list of its length.
    fn release(&self, buffer: Buffer) {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        free.entry(buffer.length).or_default().push(buffer);
    }
}

/// The length of the buffer for `length` floats: the next eighth of a power of two, so that batches
/// of slightly different sizes share buffers.
fn size_class(length: usize) -> usize {
    let step = (length.next_power_of_two() / 16).max(64);
    length.next_multiple_of(step).max(64)
}

/// A matrix in host memory, row-major.
pub struct CpuMatrix {
    rows: usize,
    columns: usize,
    /// At least `rows · columns` long.
    buffer: Buffer,
    pool: Arc<BufferPool>,
}

impl CpuMatrix {
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

    /// The elements as packed elements.
    pub fn packed_elements(&self) -> &[u32] {
        bytemuck::cast_slice(self.values())
    }

    /// The elements as packed elements.
    pub fn packed_elements_mut(&mut self) -> &mut [u32] {
        bytemuck::cast_slice_mut(self.values_mut())
    }

    /// Appends the rows of `more`.
    pub fn append(&mut self, more: &CpuMatrix) {
        let length = self.rows * self.columns;
        let wanted = length + more.values().len();
        if wanted > self.buffer.length {
            // Twice as long, so that appending token after token does not copy each time.
            let mut longer = self.pool.acquire(2 * (self.rows + more.rows), self.columns);
            longer.buffer.values_mut()[..length].copy_from_slice(self.values());
            std::mem::swap(&mut self.buffer, &mut longer.buffer);
        }
        self.buffer.values_mut()[length..wanted].copy_from_slice(more.values());
        self.rows += more.rows;
    }
}

impl Drop for CpuMatrix {
    fn drop(&mut self) {
        self.pool.release(std::mem::take(&mut self.buffer));
    }
}

thread_local! {
    static SCRATCH: Cell<Vec<u32>> = const { Cell::new(Vec::new()) };
}

/// Calls `task` with scratch memory of this thread, so many packed elements of undefined contents. Each
/// thread keeps its own, so that tasks do not allocate. Calls must not be nested.
pub fn with_scratch<T>(count: usize, task: impl FnOnce(&mut [u32]) -> T) -> T {
    SCRATCH.with(|scratch| {
        let mut own = scratch.take();
        if own.len() < count {
            own.resize(count, 0);
        }
        let made = task(&mut own[..count]);
        scratch.set(own);
        made
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_matrix_releases_its_buffer_to_the_next() {
        let pool = Arc::new(BufferPool::default());
        let first = pool.acquire(10, 10);
        let place = first.values().as_ptr();
        drop(first);
        assert_eq!(pool.acquire(10, 10).values().as_ptr(), place);
    }

    #[test]
    fn every_matrix_begins_with_a_cache_line() {
        let pool = Arc::new(BufferPool::default());
        for rows in 1..50 {
            let (made, exact) = (pool.acquire(rows, 7), pool.allocate_exact(rows, 1000));
            for matrix in [&made, &exact] {
                assert_eq!(matrix.values().as_ptr().addr() % CACHE_LINE, 0);
                assert_eq!(matrix.values().len(), matrix.rows() * matrix.columns());
            }
        }
    }

    #[test]
    fn steps_of_all_lengths_hold_little_more_than_the_longest() {
        let pool = Arc::new(BufferPool::default());
        let mut state = 1u64;
        for _ in 0..500 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let rows = 1 + (state >> 33) as usize % 2000;
            let _in_use: Vec<CpuMatrix> = (0..30).map(|_| pool.acquire(rows, 64)).collect();
        }
        let lists = pool.free.lock().expect("no panic");
        let free: usize = lists.iter().map(|(length, buffers)| length * buffers.len()).sum();
        assert!(free <= 2 * 30 * size_class(2000 * 64), "{free}");
    }

    #[test]
    fn appended_rows_stand_below() {
        let pool = Arc::new(BufferPool::default());
        let mut all = pool.acquire(0, 3);
        for step in 0..100 {
            let mut more = pool.acquire(1, 3);
            more.values_mut().fill(step as f32);
            all.append(&more);
        }
        assert_eq!(all.rows(), 100);
        assert!(all.values().chunks(3).enumerate().all(|(i, row)| row == [i as f32; 3]));
    }
}
