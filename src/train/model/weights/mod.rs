//! Weights of a base model, whatever file they lie in, under Hugging Face's names and layouts.
//!
//! No reader trusts its file: sizes are compared with the file's length before memory is taken for
//! them, every tensor's place is checked when the file is opened, and nothing in a file is executed.

pub mod folder;
pub mod gguf;
mod pickle;
pub mod pytorch;
pub mod safetensors;
mod shards;
mod tensor_index;

use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use half::{bf16, f16};

use super::error::LoadError;
use crate::util::regular_file;

/// Most names that an error lists.
const LISTED: usize = 8;

/// The first few of `names`, and how many more there are.
pub(in crate::train) fn listed(names: &[String], between: &str) -> String {
    let first = names.iter().take(LISTED).cloned().collect::<Vec<String>>().join(between);
    match names.len().saturating_sub(LISTED) {
        0 => first,
        more => format!("{first} and {more} more"),
    }
}

/// `count` bytes of a file from `start` on, which lie inside of it.
fn read_range(path: &Path, start: u64, count: usize) -> Result<Vec<u8>, LoadError> {
    let io_error = |error| LoadError::io(path, error);
    let mut file = regular_file::open(path).map_err(io_error)?;
    file.seek(SeekFrom::Start(start)).map_err(io_error)?;
    let mut bytes = vec![0u8; count];
    file.read_exact(&mut bytes).map_err(io_error)?;
    Ok(bytes)
}

/// `[rows, columns]` to `[columns, rows]`.
pub(in crate::train) fn transposed(values: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    let mut out = vec![0.0; values.len()];
    for row in 0..rows {
        for column in 0..columns {
            out[column * rows + row] = values[row * columns + column];
        }
    }
    out
}

/// Floats that hone reads as they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FloatType {
    F32,
    F16,
    Bf16,
}

impl FloatType {
    /// Bytes of one element.
    fn width(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    /// Little-endian elements.
    fn read(self, bytes: &[u8]) -> TensorData {
        let pairs = || bytes.as_chunks::<2>().0.iter();
        match self {
            Self::F32 => TensorData::F32(
                bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect(),
            ),
            Self::F16 => TensorData::F16(pairs().map(|bytes| f16::from_le_bytes(*bytes)).collect()),
            Self::Bf16 => {
                TensorData::Bf16(pairs().map(|bytes| bf16::from_le_bytes(*bytes)).collect())
            }
        }
    }
}

/// Elements of a tensor in host memory, row-major.
#[derive(Debug, Clone)]
pub enum TensorData {
    /// 32-bit floats.
    F32(Vec<f32>),
    /// bfloat16.
    Bf16(Vec<bf16>),
    /// IEEE half.
    F16(Vec<f16>),
}

/// A tensor in host memory, row-major.
#[derive(Debug, Clone)]
pub struct HostTensor {
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
    /// Elements.
    pub data: TensorData,
}

impl HostTensor {
    /// The elements as 32-bit floats.
    pub fn into_f32(self) -> Vec<f32> {
        match self.data {
            TensorData::F32(values) => values,
            TensorData::Bf16(values) => values.into_iter().map(bf16::to_f32).collect(),
            TensorData::F16(values) => values.into_iter().map(f16::to_f32).collect(),
        }
    }
}

/// Where weights come from. Names and layouts are those of the Hugging Face checkpoint of the
/// architecture (a GGUF reader translates), so that the decoder knows one set of names.
pub trait WeightSource: Send + Sync {
    /// Every tensor's name and shape.
    fn shapes(&self) -> Vec<(String, Vec<usize>)>;
    /// Reads one tensor.
    fn tensor(&self, name: &str) -> Result<HostTensor, LoadError>;
}
