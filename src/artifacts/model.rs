//! A whole model in Hugging Face's layout: the names of its files, and its weights written tensor by tensor,
//! so that they are in memory only once.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use clap::ValueEnum;
use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};

/// The folder of a whole model below that of a checkpoint.
pub const FOLDER: &str = "model";

/// Name of the configuration.
pub const CONFIG_FILE: &str = "config.json";

/// Name of the weights.
pub const WEIGHTS_FILE: &str = "model.safetensors";

/// Name of the chat template, beside a model or an adapter.
pub const TEMPLATE_FILE: &str = "chat_template.jinja";

/// Name of the settings of the chat template.
pub const TEMPLATE_SETTINGS_FILE: &str = "chat_template_settings.json";

/// Special tokens of a tokenizer by name, in folders that older versions of transformers have written.
pub const SPECIAL_TOKENS_FILE: &str = "special_tokens_map.json";

/// The files of a base model beside configuration and weights, which a model trained from it has as well:
/// tokenizer, chat template, generation settings, licence.
pub const COMPANIONS: &[&str] = &[
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    SPECIAL_TOKENS_FILE,
    "added_tokens.json",
    TEMPLATE_FILE,
    TEMPLATE_SETTINGS_FILE,
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "LICENSE",
    "LICENSE.txt",
    "NOTICE",
];

/// The type of the elements of weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum WeightType {
    /// 16 bits: the range of float32, 8 bits of precision.
    Bfloat16,
    /// 16 bits: up to 65504, 11 bits of precision.
    Float16,
    /// 32 bits.
    Float32,
}

impl WeightType {
    /// Every type.
    pub const ALL: &'static [WeightType] = &[Self::Bfloat16, Self::Float16, Self::Float32];

    /// The spelling in requests, on the command line and in `config.json`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Bfloat16 => "bfloat16",
            Self::Float16 => "float16",
            Self::Float32 => "float32",
        }
    }

    /// The first value that is a number and becomes none in this type.
    pub fn first_beyond(self, values: &[f32]) -> Option<f32> {
        let is_beyond = |value: &&f32| match self {
            Self::Bfloat16 => value.is_finite() && !bf16::from_f32(**value).is_finite(),
            Self::Float16 => value.is_finite() && !f16::from_f32(**value).is_finite(),
            Self::Float32 => false,
        };
        values.iter().find(is_beyond).copied()
    }

    /// Bytes of an element.
    fn width(self) -> usize {
        match self {
            Self::Bfloat16 | Self::Float16 => 2,
            Self::Float32 => 4,
        }
    }

    /// The name in a safetensors file.
    fn stored(self) -> Dtype {
        match self {
            Self::Bfloat16 => Dtype::BF16,
            Self::Float16 => Dtype::F16,
            Self::Float32 => Dtype::F32,
        }
    }

    /// Writes elements, rounded to the nearest.
    fn write(self, values: &[f32], file: &mut impl Write) -> io::Result<()> {
        for value in values {
            match self {
                Self::Bfloat16 => file.write_all(&bf16::from_f32(*value).to_le_bytes())?,
                Self::Float16 => file.write_all(&f16::from_f32(*value).to_le_bytes())?,
                Self::Float32 => file.write_all(&value.to_le_bytes())?,
            }
        }
        Ok(())
    }
}

/// Writes tensors, by name, as one safetensors file with elements of this type; durable when this returns.
/// `values` returns the elements of each tensor, one after the other.
pub fn write_weights<E: From<io::Error>>(
    path: &Path,
    shapes: &[(String, Vec<usize>)],
    weight_type: WeightType,
    mut values: impl FnMut(&str) -> Result<Vec<f32>, E>,
) -> Result<(), E> {
    let mut infos = Vec::with_capacity(shapes.len());
    let mut end = 0;
    for (name, shape) in shapes {
        let start = end;
        end += weight_type.width() * shape.iter().product::<usize>();
        let dtype = weight_type.stored();
        let info = TensorInfo { dtype, shape: shape.clone(), data_offsets: (start, end) };
        infos.push((name.clone(), info));
    }
    let format = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let header = Metadata::new(Some(format), infos).map_err(io::Error::other)?;
    let mut header = serde_json::to_vec(&header).map_err(io::Error::other)?;
    // The elements begin at a multiple of eight bytes.
    header.resize(header.len().next_multiple_of(8), b' ');

    let mut file = BufWriter::new(File::create(path)?);
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(&header)?;
    for (name, shape) in shapes {
        let values = values(name)?;
        if values.len() != shape.iter().product::<usize>() {
            let message = format!("{name:?} has {} elements, not those of {shape:?}", values.len());
            return Err(io::Error::other(message).into());
        }
        weight_type.write(&values, &mut file)?;
    }
    let file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
    Ok(file.sync_all()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifacts::peft;

    #[test]
    fn weights_read_back_as_they_were_written() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join(WEIGHTS_FILE);
        let shapes = [("b".to_owned(), vec![2, 3]), ("a.weight".to_owned(), vec![1])];
        let values = |name: &str| {
            Ok::<_, io::Error>(match name {
                "b" => vec![1.0, -2.5, 3.0, f32::MIN_POSITIVE, 0.0, f32::MAX],
                _ => vec![7.0],
            })
        };
        write_weights(&path, &shapes, WeightType::Float32, values).expect("it writes");
        let read = peft::deserialise(&std::fs::read(&path).expect("reads")).expect("safetensors");
        for (name, shape) in shapes {
            assert_eq!(read[&name], (shape, values(&name).expect("values")));
        }
        let short = |_: &str| Ok::<_, io::Error>(vec![1.0]);
        let error = write_weights(&path, &[("b".to_owned(), vec![2])], WeightType::Float32, short);
        assert!(error.expect_err("one is missing").to_string().contains("\"b\" has 1 elements"));
    }

    #[test]
    fn weights_in_16_bits_are_the_nearest_and_what_they_cannot_hold_is_found() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join(WEIGHTS_FILE);
        let values = [1.0f32, -1.003, 65504.0, 1e-6, 0.1];
        for weight_type in [WeightType::Bfloat16, WeightType::Float16] {
            let each = |_: &str| Ok::<_, io::Error>(values.to_vec());
            write_weights(&path, &[("a".to_owned(), vec![5])], weight_type, each).expect("writes");
            let bytes = std::fs::read(&path).expect("reads");
            let file = safetensors::SafeTensors::deserialize(&bytes).expect("safetensors");
            let tensor = file.tensor("a").expect("is there");
            assert_eq!(tensor.dtype(), weight_type.stored());
            let wanted: Vec<u8> = match weight_type {
                WeightType::Bfloat16 => {
                    values.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes()).collect()
                }
                _ => values.iter().flat_map(|value| f16::from_f32(*value).to_le_bytes()).collect(),
            };
            assert_eq!(tensor.data(), wanted);
        }
        let large = [1.0, f32::NAN, f32::INFINITY, -7e4];
        assert_eq!(WeightType::Float16.first_beyond(&large), Some(-7e4));
        assert_eq!(WeightType::Bfloat16.first_beyond(&large), None);
        assert_eq!(WeightType::Bfloat16.first_beyond(&[f32::MAX]), Some(f32::MAX));
    }
}
