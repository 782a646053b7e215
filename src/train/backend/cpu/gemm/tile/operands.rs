//! Operands of a tile, and how it is combined with the output.

/// Columns of one vector, which is one AVX-512 register; tiles are whole vectors wide.
pub const LANES: usize = 16;

/// Most vectors of a tile's row.
pub const MAX_VECTORS: usize = 4;

/// Left operand: element (row, k) lies at `start + row * row_stride + k * k_stride`.
#[derive(Debug, Clone, Copy, Default)]
pub struct LeftOperand<'a> {
    /// The packed elements.
    pub elements: &'a [u32],
    /// Index of element (0, 0).
    pub start: usize,
    /// Distance between rows.
    pub row_stride: usize,
    /// Distance between elements along k.
    pub k_stride: usize,
}

impl LeftOperand<'_> {
    /// The operand without its first rows.
    pub fn skip_rows(self, rows: usize) -> Self {
        Self { start: self.start + rows * self.row_stride, ..self }
    }
}

/// Right operand: row k lies at `start + k * stride` and is as long as the tile is wide in whole vectors.
#[derive(Debug, Clone, Copy, Default)]
pub struct RightOperand<'a> {
    /// The packed elements.
    pub elements: &'a [u32],
    /// Index of element (0, 0).
    pub start: usize,
    /// Distance between rows, along k.
    pub stride: usize,
}

/// One of the products that a tile is the sum of.
#[derive(Debug, Clone, Copy, Default)]
pub struct GemmTerm<'a> {
    /// Left operand.
    pub left: LeftOperand<'a>,
    /// Right operand.
    pub right: RightOperand<'a>,
    /// Rows of the right operand, in packed elements along k.
    pub k_len: usize,
    /// Whether the right operand holds bf16 pairs while the left operand holds f32 values, two for each
    /// pair. A matrix that is stored in bf16 is multiplied exactly this way.
    pub right_is_bf16: bool,
}

/// How a product is combined with the output: α and β of a GEMM, C = α·A·B + β·C.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum AccumulateMode {
    /// β = 0: the product replaces the output.
    Overwrite,
    /// β = 1, applied first: the accumulators start from the output. A product that is split along k comes
    /// to the same bits as in one piece.
    StartFromOutput,
    /// β = 1, applied last: α times the product is added to the output.
    AddScaled(f32),
}

/// A region of a [`SharedOutput`](super::SharedOutput): its rows begin `stride` apart from `start` on and are `columns` long.
#[derive(Debug, Clone, Copy)]
pub struct OutputRegion {
    /// Index of the first element.
    pub start: usize,
    /// Distance between rows.
    pub stride: usize,
    /// Elements of a row.
    pub columns: usize,
}
