//! Matrices as candle tensors.

use std::ops::Range;

use candle_core::Tensor;

use super::CandleBackend;
use super::weight::CandleWeight;
use crate::train::backend::{Matrices, Outcome};

impl Matrices for CandleBackend {
    type Matrix = Tensor;
    type Weight = CandleWeight;
    type Vector = Tensor;
    type Indexes = Tensor;

    fn name(&self) -> &'static str {
        "candle"
    }

    fn matrix(&self, rows: usize, columns: usize, values: &[f32]) -> Outcome<Tensor> {
        self.transfers.floats(values, (rows, columns))
    }

    fn zeros(&self, rows: usize, columns: usize) -> Outcome<Tensor> {
        self.transfers.zeros(rows, columns)
    }

    fn values(&self, matrix: &Tensor) -> Outcome<Vec<f32>> {
        self.transfers.read(matrix)
    }

    fn rows(&self, matrix: &Tensor) -> usize {
        matrix.dims().first().copied().unwrap_or(0)
    }

    fn copy(&self, matrix: &Tensor) -> Outcome<Tensor> {
        // Tensors are immutable and shared: operations that write make new ones.
        Ok(matrix.clone())
    }

    fn vector(&self, values: &[f32]) -> Outcome<Tensor> {
        self.transfers.floats(values, values.len())
    }

    fn indexes(&self, values: &[u32]) -> Outcome<Tensor> {
        self.transfers.indexes(values)
    }

    fn weight(
        &self,
        outputs: usize,
        inputs: usize,
        values: &[f32],
        bias: Option<&[f32]>,
        _backward: bool,
    ) -> Outcome<CandleWeight> {
        let bias = match bias {
            Some(bias) => Some(self.vector(bias)?),
            None => None,
        };
        let weight = self.transfers.rounded(values, (outputs, inputs), self.precision)?;
        Ok(CandleWeight { weight, bias })
    }

    fn gather_rows(&self, matrix: &Tensor, indexes: &Tensor) -> Outcome<Tensor> {
        Ok(matrix.index_select(indexes, 0)?)
    }

    fn scatter_rows(&self, rows: usize, indexes: &Tensor, from: &Tensor) -> Outcome<Tensor> {
        Ok(self.zeros(rows, from.dim(1)?)?.index_add(indexes, &from.contiguous()?, 0)?)
    }

    fn gather_columns(&self, matrix: &Tensor, ranges: &[Range<usize>]) -> Outcome<Tensor> {
        let mut parts = Vec::with_capacity(ranges.len());
        for range in ranges {
            parts.push(matrix.narrow(1, range.start, range.len())?);
        }
        Ok(Tensor::cat(&parts, 1)?.contiguous()?)
    }

    fn scatter_columns(
        &self,
        into: &mut Tensor,
        ranges: &[Range<usize>],
        from: &Tensor,
    ) -> Outcome<()> {
        // Copies share their memory, and `slice_set` writes in place.
        *into = into.copy()?;
        let mut first = 0;
        for range in ranges {
            let part = from.narrow(1, first, range.len())?.contiguous()?;
            into.slice_set(&part, 1, range.start)?;
            first += range.len();
        }
        Ok(())
    }

    fn append_rows(&self, matrix: &mut Tensor, more: &Tensor) -> Outcome<()> {
        *matrix = Tensor::cat(&[&*matrix, more], 0)?;
        Ok(())
    }

    fn add(&self, into: &mut Tensor, from: &Tensor) -> Outcome<()> {
        *into = (&*into + from)?;
        Ok(())
    }
}
