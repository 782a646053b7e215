//! The formats of an export.

use clap::ValueEnum;

use crate::artifacts::gguf::GgufType;

/// A format in which a model can be exported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ExportFormat {
    /// The adapter in the layout of Hugging Face PEFT, which vLLM reads too.
    Peft,
    /// A whole model in Hugging Face's layout.
    Merged,
    /// The adapter for llama.cpp's `--lora`.
    GgufLora,
    /// A whole model for llama.cpp and Ollama.
    Gguf,
}

impl ExportFormat {
    /// Every format.
    pub const ALL: &'static [ExportFormat] =
        &[Self::Peft, Self::Merged, Self::GgufLora, Self::Gguf];

    /// The spelling in requests and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Peft => "peft",
            Self::Merged => "merged",
            Self::GgufLora => "gguf-lora",
            Self::Gguf => "gguf",
        }
    }

    /// Whether the export is a whole model; otherwise it is an adapter.
    pub fn is_whole(self) -> bool {
        matches!(self, Self::Merged | Self::Gguf)
    }

    /// The quantization of an export: the requested one, or the default.
    ///
    /// # Errors
    /// When a quantization is requested for a format without a choice.
    pub fn quantization(
        self,
        requested: Option<Quantization>,
    ) -> Result<Quantization, UnsupportedQuantization> {
        match requested {
            Some(_) if self != Self::Gguf => Err(UnsupportedQuantization(self)),
            requested => Ok(requested.unwrap_or(Quantization::F16)),
        }
    }
}

/// The format has no choice of quantization.
#[derive(Debug, thiserror::Error)]
#[error("quantization is of the format \"gguf\" alone, and the format is {:?}", .0.as_str())]
pub struct UnsupportedQuantization(ExportFormat);

/// How the matrices of a GGUF model are stored. Norms and biases are always 32-bit floats.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Quantization {
    /// 16-bit floats.
    F16,
    /// Blocks of 8-bit integers.
    #[value(name = "q8_0")]
    Q8_0,
}

impl Quantization {
    /// Every quantization.
    pub const ALL: &'static [Quantization] = &[Self::F16, Self::Q8_0];

    /// The spelling in requests and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::F16 => "f16",
            Self::Q8_0 => "q8_0",
        }
    }

    /// The type of the matrices in the file.
    pub(super) fn gguf_type(self) -> GgufType {
        match self {
            Self::F16 => GgufType::F16,
            Self::Q8_0 => GgufType::Q8_0,
        }
    }
}
