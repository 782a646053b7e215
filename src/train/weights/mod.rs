//! Weights of a base model, whatever file they lie in, under Hugging Face's names and layouts.

pub mod gguf;
pub mod safetensors;

use half::{bf16, f16};

/// What can go wrong while a base model is read.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A file of the model cannot be read.
    #[error("{path}: {source}")]
    Io {
        /// Which file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// A file of the model is not what it should be.
    #[error("{path}: {reason}")]
    Malformed {
        /// Which file.
        path: String,
        /// What is wrong and what to do.
        reason: String,
    },
    /// The architecture is not one that hone trains.
    #[error("architecture {found:?} is not supported; hone knows {known}")]
    UnknownArchitecture {
        /// What the configuration says.
        found: String,
        /// What there is.
        known: String,
    },
    /// Tensors are missing, or have another shape than the configuration says.
    #[error("the weights do not fit the configuration: {0}")]
    Tensors(String),
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
