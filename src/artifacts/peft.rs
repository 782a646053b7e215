//! The adapter in the layout of Hugging Face PEFT: `adapter_config.json` and
//! `adapter_model.safetensors`.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::path::Path;

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};

use super::model::{TEMPLATE_FILE, TEMPLATE_SETTINGS_FILE};
use crate::util::atomic_file;

/// Name of the configuration.
pub const CONFIG_FILE: &str = "adapter_config.json";

/// Name of the weights.
pub const WEIGHTS_FILE: &str = "adapter_model.safetensors";

/// The files that an adapter has beside these two: the chat template that it was trained with.
pub const COMPANIONS: &[&str] = &[TEMPLATE_FILE, TEMPLATE_SETTINGS_FILE];

/// The tensors of an adapter under PEFT's keys: shape and row-major values.
pub type AdapterTensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// Why an adapter's files cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum PeftError {
    /// A file cannot be read or written.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The configuration is not that of a plain LoRA adapter.
    #[error("{CONFIG_FILE}: {0}")]
    Config(String),
    /// The weights are not safetensors of 32-bit floats.
    #[error("{WEIGHTS_FILE}: {0}")]
    Weights(String),
}

/// The fields of `adapter_config.json` that hone sets; PEFT's defaults apply to the others.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AdapterConfig {
    /// `LORA`.
    pub peft_type: String,
    /// `CAUSAL_LM`.
    pub task_type: String,
    /// Id of the base model.
    pub base_model_name_or_path: String,
    /// Rank.
    pub r: usize,
    /// The output is scaled by lora_alpha / r.
    pub lora_alpha: f64,
    /// Dropout during training.
    pub lora_dropout: f64,
    /// Last components of the paths of the adapted layers.
    pub target_modules: Vec<String>,
    /// Indexes of the adapted decoder layers; null for all.
    #[serde(default)]
    pub layers_to_transform: Option<Vec<u32>>,
    /// Last components of the paths of modules whose weights are stored in full.
    #[serde(default)]
    pub modules_to_save: Option<Vec<String>>,
    /// Whether the base stores these layers as `[inputs, outputs]` (GPT-2).
    pub fan_in_fan_out: bool,
    /// `none`: biases are not trained.
    pub bias: String,
    /// Whether the scale is lora_alpha / √r instead (rsLoRA).
    #[serde(default)]
    pub use_rslora: bool,
    /// Whether magnitudes are trained (DoRA).
    #[serde(default)]
    pub use_dora: bool,
    /// Whether the adapter is for inference, not for further training.
    pub inference_mode: bool,
}

impl AdapterConfig {
    /// A LoRA adapter of `modules`, the full paths of the adapted layers.
    pub fn new(
        base_model: &str,
        rank: usize,
        alpha: f64,
        modules: &[String],
        fan_in_fan_out: bool,
    ) -> Self {
        let names: BTreeSet<&str> =
            modules.iter().map(|module| module.rsplit('.').next().unwrap_or(module)).collect();
        Self {
            peft_type: "LORA".to_owned(),
            task_type: "CAUSAL_LM".to_owned(),
            base_model_name_or_path: base_model.to_owned(),
            r: rank,
            lora_alpha: alpha,
            lora_dropout: 0.0,
            target_modules: names.into_iter().map(str::to_owned).collect(),
            layers_to_transform: None,
            modules_to_save: None,
            fan_in_fan_out,
            bias: "none".to_owned(),
            use_rslora: false,
            use_dora: false,
            inference_mode: true,
        }
    }
}

/// Writes both files into `folder`.
pub fn write(
    folder: &Path,
    config: &AdapterConfig,
    tensors: &AdapterTensors,
) -> Result<(), PeftError> {
    let mut text = serde_json::to_string_pretty(config)
        .map_err(|error| PeftError::Config(error.to_string()))?;
    text.push('\n');
    atomic_file::write(&folder.join(CONFIG_FILE), text.as_bytes())?;
    atomic_file::write(&folder.join(WEIGHTS_FILE), &serialise(tensors)?)?;
    Ok(())
}

/// Tensors as a safetensors file, marked as PyTorch's layout like PEFT's.
pub fn serialise(tensors: &AdapterTensors) -> Result<Vec<u8>, PeftError> {
    let bytes: Vec<(&String, &Vec<usize>, Vec<u8>)> = tensors
        .iter()
        .map(|(key, (shape, values))| {
            (key, shape, values.iter().flat_map(|value| value.to_le_bytes()).collect())
        })
        .collect();
    let mut views = Vec::with_capacity(bytes.len());
    for (key, shape, bytes) in &bytes {
        let view = TensorView::new(Dtype::F32, (*shape).clone(), bytes)
            .map_err(|error| PeftError::Weights(format!("{key:?}: {error}")))?;
        views.push((*key, view));
    }
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    safetensors::serialize(views, Some(metadata))
        .map_err(|error| PeftError::Weights(error.to_string()))
}

/// Reads the bytes of both files.
///
/// # Errors
/// Another kind of adapter than plain LoRA, or damaged files.
pub fn read(config: &[u8], weights: &[u8]) -> Result<(AdapterConfig, AdapterTensors), PeftError> {
    let config: AdapterConfig =
        serde_json::from_slice(config).map_err(|error| PeftError::Config(error.to_string()))?;
    let is_plain = config.peft_type == "LORA" && !config.use_dora;
    if !is_plain || config.bias != "none" || config.r == 0 {
        return Err(PeftError::Config("it is not a plain LoRA adapter".to_owned()));
    }
    Ok((config, deserialise(weights)?))
}

/// Reads a safetensors file of 32-bit floats.
pub fn deserialise(bytes: &[u8]) -> Result<AdapterTensors, PeftError> {
    let file =
        SafeTensors::deserialize(bytes).map_err(|error| PeftError::Weights(error.to_string()))?;
    let mut tensors = AdapterTensors::new();
    for (key, view) in file.tensors() {
        if view.dtype() != Dtype::F32 {
            return Err(PeftError::Weights(format!("{key:?} is of type {:?}", view.dtype())));
        }
        let (chunks, _) = view.data().as_chunks::<4>();
        let values = chunks.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        tensors.insert(key, (view.shape().to_vec(), values));
    }
    Ok(tensors)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_adapter_reads_back_as_it_was_written() {
        let modules = ["a.0.q_proj", "a.1.q_proj", "a.0.o_proj"].map(str::to_owned);
        let config = AdapterConfig::new("base", 2, 4.0, &modules, false);
        assert_eq!(config.target_modules, ["o_proj", "q_proj"]);
        let tensors = AdapterTensors::from([(
            "k".to_owned(),
            (vec![2, 2], vec![1.0, -2.5, 3.0, f32::MIN_POSITIVE]),
        )]);
        let folder = tempfile::tempdir().expect("a folder");
        write(folder.path(), &config, &tensors).expect("it writes");
        let bytes = |name| std::fs::read(folder.path().join(name)).expect("it is there");
        let (read_config, read_tensors) =
            read(&bytes(CONFIG_FILE), &bytes(WEIGHTS_FILE)).expect("it reads");
        assert_eq!((read_config, read_tensors), (config, tensors));
    }
}
