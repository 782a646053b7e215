//! The formats of an export.

use clap::ValueEnum;

use crate::artifacts::gguf::GgufType;
use crate::artifacts::model::WeightType;

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
}

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

/// How a model is exported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportOptions {
    /// The format.
    pub format: ExportFormat,
    /// How the matrices of a GGUF model are stored.
    pub quantization: Quantization,
    /// The type of merged weights; `None` for the base's.
    pub weight_type: Option<WeightType>,
    /// The name of the base model in PEFT's adapter; `None` for the one that hone knows.
    pub base_model_name: Option<String>,
}

impl ExportOptions {
    /// A format with its defaults.
    pub fn new(format: ExportFormat) -> Self {
        Self { format, quantization: Quantization::F16, weight_type: None, base_model_name: None }
    }

    /// A format with what is requested of it.
    ///
    /// # Errors
    /// When something is requested that belongs to another format.
    pub fn requested(
        format: ExportFormat,
        quantization: Option<Quantization>,
        weight_type: Option<WeightType>,
        base_model_name: Option<String>,
    ) -> Result<Self, UnsupportedOption> {
        for (option, is_requested, owner) in [
            ("quantization", quantization.is_some(), ExportFormat::Gguf),
            ("dtype", weight_type.is_some(), ExportFormat::Merged),
            ("base_model_name", base_model_name.is_some(), ExportFormat::Peft),
        ] {
            if is_requested && format != owner {
                return Err(UnsupportedOption { option, owner, format });
            }
        }
        let quantization = quantization.unwrap_or(Quantization::F16);
        Ok(Self { format, quantization, weight_type, base_model_name })
    }
}

/// The format does not have this option.
#[derive(Debug, thiserror::Error)]
#[error("{option} is of the format {:?} alone, and the format is {:?}", .owner.as_str(), .format.as_str())]
pub struct UnsupportedOption {
    /// The option, as requests spell it.
    pub option: &'static str,
    owner: ExportFormat,
    format: ExportFormat,
}
