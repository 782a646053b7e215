//! Matrices on a device, and their transfers.

use std::ops::Range;

use super::error::Outcome;

/// Matrices on a device: transfers from and to the host, and operations on rows and columns. Every backend
/// has them.
pub trait Matrices: Send + Sized + 'static {
    /// A matrix of f32 values on the device.
    type Matrix: Send;
    /// The weight of a linear layer, `[outputs, inputs]`, with an optional bias, in a layout of the backend's
    /// choice.
    type Weight: Send;
    /// A vector of f32 values.
    type Vector: Send;
    /// Row numbers, token ids or positions on the device.
    type Indexes: Send;

    /// Name for messages.
    fn name(&self) -> &'static str;
    /// A matrix from host values, row-major.
    fn matrix(&self, rows: usize, columns: usize, values: &[f32]) -> Outcome<Self::Matrix>;
    /// A matrix of zeros.
    fn zeros(&self, rows: usize, columns: usize) -> Outcome<Self::Matrix>;
    /// A matrix's values, row-major.
    fn values(&self, matrix: &Self::Matrix) -> Outcome<Vec<f32>>;
    /// Rows of a matrix.
    fn rows(&self, matrix: &Self::Matrix) -> usize;
    /// A second matrix with the same values.
    fn copy(&self, matrix: &Self::Matrix) -> Outcome<Self::Matrix>;
    /// A row.
    fn vector(&self, values: &[f32]) -> Outcome<Self::Vector>;
    /// Indexes from host values.
    fn indexes(&self, values: &[u32]) -> Outcome<Self::Indexes>;
    /// The weight of a linear layer from `[outputs, inputs]`; `backward` says whether gradients flow through it.
    fn weight(
        &self,
        outputs: usize,
        inputs: usize,
        values: &[f32],
        bias: Option<&[f32]>,
        backward: bool,
    ) -> Outcome<Self::Weight>;
    /// The rows at `indexes`.
    fn gather_rows(&self, matrix: &Self::Matrix, indexes: &Self::Indexes) -> Outcome<Self::Matrix>;
    /// A matrix of `rows` rows, zero except for the rows of `from` at `indexes` (no index twice).
    fn scatter_rows(
        &self,
        rows: usize,
        indexes: &Self::Indexes,
        from: &Self::Matrix,
    ) -> Outcome<Self::Matrix>;
    /// The columns in `ranges`, side by side.
    fn gather_columns(
        &self,
        matrix: &Self::Matrix,
        ranges: &[Range<usize>],
    ) -> Outcome<Self::Matrix>;
    /// Backward of [`Matrices::gather_columns`]: writes `from` into the columns in `ranges` of `into`.
    fn scatter_columns(
        &self,
        into: &mut Self::Matrix,
        ranges: &[Range<usize>],
        from: &Self::Matrix,
    ) -> Outcome<()>;
    /// Appends the rows of `more`.
    fn append_rows(&self, matrix: &mut Self::Matrix, more: &Self::Matrix) -> Outcome<()>;
    /// `into += from`.
    fn add(&self, into: &mut Self::Matrix, from: &Self::Matrix) -> Outcome<()>;
}
