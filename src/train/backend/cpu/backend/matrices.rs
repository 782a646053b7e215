//! Matrices in host memory.

use std::ops::Range;

use rayon::prelude::*;

use super::CpuBackend;
use crate::train::backend::cpu::buffer_pool::CpuMatrix;
use crate::train::backend::cpu::gemm::weight::CpuWeight;
use crate::train::backend::cpu::isa::Isa;
use crate::train::backend::cpu::vector;
use crate::train::backend::{Matrices, Outcome};

/// Copies the columns in `ranges` between rows of `wide` and rows of `narrow`.
fn each_row(
    wide_columns: usize,
    narrow_columns: usize,
    ranges: &[Range<usize>],
    mut copy: impl FnMut(Range<usize>, Range<usize>),
    rows: usize,
) {
    for row in 0..rows {
        let mut into = row * narrow_columns;
        for range in ranges {
            let wide = row * wide_columns + range.start..row * wide_columns + range.end;
            copy(wide, into..into + range.len());
            into += range.len();
        }
    }
}

impl Matrices for CpuBackend {
    type Matrix = CpuMatrix;
    type Weight = CpuWeight;
    type Vector = Vec<f32>;
    type Indexes = Vec<u32>;

    fn name(&self) -> &'static str {
        match self.isa {
            Isa::Bf16 => "cpu (bf16)",
            Isa::Avx512 => "cpu (f32, avx512)",
            Isa::Avx2 => "cpu (f32, avx2)",
            Isa::Portable => "cpu (f32, portable)",
        }
    }

    fn matrix(&self, rows: usize, columns: usize, values: &[f32]) -> Outcome<CpuMatrix> {
        let mut made = self.pool.acquire(rows, columns);
        made.values_mut().copy_from_slice(values);
        Ok(made)
    }

    fn zeros(&self, rows: usize, columns: usize) -> Outcome<CpuMatrix> {
        Ok(self.filled(rows, columns, 0.0))
    }

    fn values(&self, matrix: &CpuMatrix) -> Outcome<Vec<f32>> {
        Ok(matrix.values().to_vec())
    }

    fn rows(&self, matrix: &CpuMatrix) -> usize {
        matrix.rows()
    }

    fn copy(&self, matrix: &CpuMatrix) -> Outcome<CpuMatrix> {
        self.matrix(matrix.rows(), matrix.columns(), matrix.values())
    }

    fn vector(&self, values: &[f32]) -> Outcome<Vec<f32>> {
        Ok(values.to_vec())
    }

    fn indexes(&self, values: &[u32]) -> Outcome<Vec<u32>> {
        Ok(values.to_vec())
    }

    fn weight(
        &self,
        outputs: usize,
        inputs: usize,
        values: &[f32],
        bias: Option<&[f32]>,
        backward: bool,
    ) -> Outcome<CpuWeight> {
        let (isa, pool) = (self.isa, &self.pool);
        let weight = match backward {
            true => CpuWeight::for_training(isa, pool, values, outputs, inputs),
            false => {
                CpuWeight::for_inference(isa, pool, values, outputs, inputs, self.round_to_bf16)
            }
        };
        Ok(CpuWeight { bias: bias.map(<[f32]>::to_vec), ..weight })
    }

    fn gather_rows(&self, matrix: &CpuMatrix, indexes: &Vec<u32>) -> Outcome<CpuMatrix> {
        let columns = matrix.columns();
        let mut made = self.pool.acquire(indexes.len(), columns);
        for (row, index) in made.values_mut().chunks_exact_mut(columns).zip(indexes) {
            row.copy_from_slice(&matrix.values()[*index as usize * columns..][..columns]);
        }
        Ok(made)
    }

    fn scatter_rows(
        &self,
        rows: usize,
        indexes: &Vec<u32>,
        from: &CpuMatrix,
    ) -> Outcome<CpuMatrix> {
        let columns = from.columns();
        let mut made = self.filled(rows, columns, 0.0);
        for (row, index) in from.values().chunks_exact(columns).zip(indexes) {
            made.values_mut()[*index as usize * columns..][..columns].copy_from_slice(row);
        }
        Ok(made)
    }

    fn gather_columns(&self, matrix: &CpuMatrix, ranges: &[Range<usize>]) -> Outcome<CpuMatrix> {
        let columns = ranges.iter().map(Range::len).sum();
        let mut made = self.pool.acquire(matrix.rows(), columns);
        let (from, into) = (matrix.values(), made.values_mut());
        let copy = |wide: Range<usize>, narrow: Range<usize>| {
            into[narrow].copy_from_slice(&from[wide]);
        };
        each_row(matrix.columns(), columns, ranges, copy, matrix.rows());
        Ok(made)
    }

    fn scatter_columns(
        &self,
        into: &mut CpuMatrix,
        ranges: &[Range<usize>],
        from: &CpuMatrix,
    ) -> Outcome<()> {
        let (wide_columns, rows) = (into.columns(), into.rows());
        let (into, values) = (into.values_mut(), from.values());
        let copy = |wide: Range<usize>, narrow: Range<usize>| {
            into[wide].copy_from_slice(&values[narrow]);
        };
        each_row(wide_columns, from.columns(), ranges, copy, rows);
        Ok(())
    }

    fn append_rows(&self, matrix: &mut CpuMatrix, more: &CpuMatrix) -> Outcome<()> {
        matrix.append(more);
        Ok(())
    }

    fn add(&self, into: &mut CpuMatrix, from: &CpuMatrix) -> Outcome<()> {
        const PART: usize = 16 * 1024;
        let parts = into.values_mut().par_chunks_mut(PART).zip(from.values().par_chunks(PART));
        parts.for_each(|(into, from)| vector::add_scaled(self.isa, into, from, 1.0));
        Ok(())
    }
}
