//! What llama.cpp's converter does to the values of a tensor, and how it is undone.

use crate::train::model::weights::{HostTensor, TensorData, transposed};

/// What the converter did to a tensor, to be undone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TensorTransform {
    None,
    /// Rows of q or k of so many heads stand in the order of interleaved rotation, pairs side by
    /// side, instead of halves.
    Interleaved {
        heads: usize,
    },
    /// One was added: Gemma stores w where 1 + w is meant.
    PlusOne,
    /// `[outputs, inputs]` where GPT-2's `Conv1D` has `[inputs, outputs]`.
    Transposed,
    /// The queries of all heads, then keys, then values, where GPT-NeoX has q, k and v of one head
    /// after the other.
    HeadsApart {
        heads: usize,
    },
}

impl TensorTransform {
    /// Hugging Face's shape of a tensor of the stored shape.
    pub(super) fn shape(self, stored: &[usize]) -> Vec<usize> {
        match (self, stored) {
            (Self::Transposed, &[rows, columns]) => vec![columns, rows],
            _ => stored.to_vec(),
        }
    }

    /// Whether a tensor of the stored shape can have been changed so.
    pub(super) fn fits(self, stored: &[usize]) -> bool {
        let rows = stored.first().copied().unwrap_or(0);
        match self {
            Self::None | Self::PlusOne => true,
            Self::Interleaved { heads } => rows > 0 && rows.is_multiple_of(2 * heads),
            Self::HeadsApart { heads } => rows > 0 && rows.is_multiple_of(3 * heads),
            Self::Transposed => stored.len() == 2,
        }
    }

    /// Makes the change: the values of a tensor of Hugging Face's `shape` as they are stored.
    pub(super) fn apply(self, shape: &[usize], values: Vec<f32>) -> Vec<f32> {
        let rows = shape.first().copied().unwrap_or(1);
        let columns = values.len() / rows.max(1);
        match self {
            Self::None => values,
            Self::PlusOne => values.into_iter().map(|value| value + 1.0).collect(),
            Self::Transposed => transposed(&values, rows, columns),
            Self::Interleaved { heads } => {
                let head_dim = rows / heads;
                by_rows(&values, columns, rows, |row| {
                    let (head, place) = (row / head_dim, row % head_dim);
                    head * head_dim + place % 2 * (head_dim / 2) + place / 2
                })
            }
            Self::HeadsApart { heads } => {
                let head_dim = rows / (3 * heads);
                by_rows(&values, columns, rows, |row| {
                    let (part, rest) = (row / (heads * head_dim), row % (heads * head_dim));
                    (rest / head_dim * 3 + part) * head_dim + rest % head_dim
                })
            }
        }
    }

    /// The tensor as Hugging Face has it; it has to fit.
    pub(super) fn undo(self, stored: HostTensor) -> HostTensor {
        if self == Self::None {
            return stored;
        }
        let shape = self.shape(&stored.shape);
        let rows = stored.shape.first().copied().unwrap_or(1);
        let values = stored.into_f32();
        let columns = values.len() / rows.max(1);
        let values = match self {
            Self::None => values,
            Self::PlusOne => values.into_iter().map(|value| value - 1.0).collect(),
            Self::Transposed => transposed(&values, rows, columns),
            Self::Interleaved { heads } => {
                let head_dim = rows / heads;
                by_rows(&values, columns, rows, |row| {
                    let (head, place) = (row / head_dim, row % head_dim);
                    let half = head_dim / 2;
                    head * head_dim + place % half * 2 + place / half
                })
            }
            Self::HeadsApart { heads } => {
                let head_dim = rows / (3 * heads);
                by_rows(&values, columns, rows, |row| {
                    let (head, rest) = (row / (3 * head_dim), row % (3 * head_dim));
                    (rest / head_dim * heads + head) * head_dim + rest % head_dim
                })
            }
        };
        HostTensor { shape, data: TensorData::F32(values) }
    }
}

/// Rows in another order: row r comes from row `from(r)`.
fn by_rows(values: &[f32], columns: usize, rows: usize, from: impl Fn(usize) -> usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(values.len());
    for row in 0..rows {
        out.extend_from_slice(&values[from(row) * columns..][..columns]);
    }
    out
}
