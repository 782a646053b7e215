//! A whole model for llama.cpp in one file: the weights merged with the adapter, configuration, tokenizer and
//! chat template.

use std::path::Path;

use super::error::ExportError;
use super::format::Quantization;
use super::gguf_adapter::no_place;
use super::opened_model::OpenedModel;
use super::{gguf_metadata, gguf_tokenizer, modelfile};
use crate::artifacts::gguf::{self as file, GgufTensor, GgufType};
use crate::train::model::config::{Family, ModelConfig, Rope};
use crate::train::model::tokenizer::Tokenizer;
use crate::train::model::weights::gguf::{self, GgufLayout};
use crate::util::atomic_file;

/// Name of the model.
pub(super) const FILE_NAME: &str = "model.gguf";

/// Relative tolerance of a rotary frequency after its divisor has been stored in 32 bits.
const FREQUENCY_TOLERANCE: f32 = 1e-5;

/// Texts that must have the same tokens in the model and in the file: words, contractions, digits, spaces,
/// lines, punctuation, and letters and emoji of several bytes.
const PROBE_TEXTS: &[&str] = &[
    "Hello, world! It's 1234567 o'clock; we'LL see  three   spaces.",
    "\tdef f(x):\n\n    return x**2 - 3.14e10  # \"quoted\"\r\n\r\n",
    "Grüße aus Köln, 東京タワー 123, Привет мир, नमस्ते दुनिया 👋🏽🙂",
    " leading and trailing ",
];

/// Writes the model and an Ollama Modelfile beside it; what is to be done by hand, a sentence each.
pub(super) fn write(
    model: &OpenedModel,
    quantization: Quantization,
    folder: &Path,
) -> Result<Vec<String>, ExportError> {
    let layout = GgufLayout::of(&model.config);
    let architecture = layout.architecture();
    let expected = expected(&model.config);
    let (metadata, factors) = match model.base.path.is_file() {
        true => gguf_metadata::copied(model, architecture, quantization)?,
        false => {
            let context = match model.config.context_length == expected.context_length {
                // LongRoPE's files contain the extended length, which hone does not compute.
                true => declared_context(model),
                false => expected.context_length,
            };
            let (mut metadata, factors) =
                gguf_metadata::from_config(model, architecture, quantization, context)?;
            metadata.extend(gguf_tokenizer::metadata(&model.base, model.config.vocabulary)?);
            (metadata, factors)
        }
    };
    let mut tensors = Vec::new();
    let mut sources = Vec::new();
    for (name, values) in &factors {
        tensors.push(GgufTensor {
            name: name.clone(),
            shape: vec![values.len()],
            kind: GgufType::F32,
        });
    }
    for tensor in &model.tensors {
        let Some(place) = layout.place(&tensor.name) else {
            return Err(no_place(&tensor.name, &layout));
        };
        let shape = place.shape(&tensor.shape);
        let kind = type_of(&tensor.name, &shape, quantization);
        tensors.push(GgufTensor { name: place.name.clone(), shape, kind });
        sources.push((tensor, place));
    }
    let lists: Vec<&Vec<f32>> = factors.values().collect();
    let path = folder.join(FILE_NAME);
    file::write(&path, &metadata, &tensors, |index| match lists.get(index) {
        Some(values) => Ok::<_, ExportError>((*values).clone()),
        None => {
            let (tensor, place) = sources[index - lists.len()];
            Ok(place.values(&tensor.shape, model.merged_values(tensor)?))
        }
    })?;
    check(model, &expected, &path)?;
    let modelfile = modelfile::of_model(model, FILE_NAME);
    atomic_file::write(&folder.join(modelfile::FILE_NAME), modelfile.text.as_bytes())?;
    Ok(modelfile.remarks)
}

/// Vectors and learned position embeddings stay in 32 bits, rows that are no whole number of blocks in 16.
fn type_of(name: &str, shape: &[usize], quantization: Quantization) -> GgufType {
    if shape.len() < 2 || name.ends_with("wpe.weight") {
        return GgufType::F32;
    }
    let kind = quantization.gguf_type();
    let row = shape.last().copied().unwrap_or(1);
    if kind.fits(row) { kind } else { GgufType::F16 }
}

/// The context length in the configuration.
fn declared_context(model: &OpenedModel) -> usize {
    let config = &model.base.config;
    let named = config["max_position_embeddings"].as_u64().or(config["n_positions"].as_u64());
    named.map_or(model.config.context_length, |length| length as usize)
}

/// The configuration that the file must express. llama.cpp computes sliding windows for Gemma only. For other
/// families the context is limited to the window, so that there is no difference.
fn expected(config: &ModelConfig) -> ModelConfig {
    let mut expected = config.clone();
    if !config.has_post_norms() {
        let window = config.windows.iter().flatten().min().copied();
        expected.context_length = config.context_length.min(window.unwrap_or(usize::MAX));
        expected.windows = vec![None; config.layers];
        if config.family == Family::Mistral {
            expected.family = Family::Llama;
        }
    }
    expected
}

/// Reads the file back. A setting that has no key in the file, or another meaning there, is refused here, not
/// noticed later in llama.cpp.
fn check(model: &OpenedModel, expected: &ModelConfig, path: &Path) -> Result<(), ExportError> {
    let read = gguf::open(path)?;
    let found = ModelConfig::read(&read.config)?;
    // Metadata copied from a GGUF base model may contain more than llama.cpp computes.
    let is_copied = model.base.path.is_file();
    let wanted = if is_copied { &model.config } else { expected };
    if let Some(difference) = difference(wanted, &found) {
        return Err(ExportError::Unsupported(format!(
            "a GGUF file cannot say all that this model is: {difference}. llama.cpp would compute \
             another model: export it as \"merged\""
        )));
    }
    let tokenizer = Tokenizer::from_json(&read.tokenizer_json, read.special)
        .map_err(|error| ExportError::Unsupported(error.to_string()))?;
    for probe in PROBE_TEXTS {
        let ids = |tokenizer: &Tokenizer| {
            tokenizer
                .encode(probe)
                .map(|tokens| tokens.into_iter().map(|(id, _)| id).collect::<Vec<u32>>())
        };
        let (wanted, found) = (ids(&model.base.tokenizer), ids(&tokenizer));
        if wanted.as_ref().ok() != found.as_ref().ok() {
            return Err(ExportError::Unsupported(format!(
                "llama.cpp would cut text into other tokens than the model's tokenizer does, such as \
                 {probe:?}: export it as \"merged\""
            )));
        }
    }
    Ok(())
}

/// The first difference of two configurations, as a sentence.
fn difference(wanted: &ModelConfig, found: &ModelConfig) -> Option<String> {
    let same_rope = |(wanted, found): (&Rope, &Rope)| {
        let mut pairs = wanted.frequencies.iter().zip(&found.frequencies);
        wanted.frequencies.len() == found.frequencies.len()
            && pairs.all(|(a, b)| (a - b).abs() <= FREQUENCY_TOLERANCE * a.abs())
            && (wanted.magnitude - found.magnitude).abs() <= FREQUENCY_TOLERANCE
    };
    if wanted.ropes.len() != found.ropes.len()
        || !wanted.ropes.iter().zip(&found.ropes).all(same_rope)
    {
        return Some("its rotary positions come back otherwise".to_owned());
    }
    if wanted.attention_scale != found.attention_scale {
        return Some(format!(
            "it scales attention by {} and the file means {}",
            wanted.attention_scale, found.attention_scale
        ));
    }
    if wanted.activation != found.activation {
        return Some(format!(
            "its non-linearity is {:?} and the file means {:?}",
            wanted.activation, found.activation
        ));
    }
    let found = ModelConfig { ropes: wanted.ropes.clone(), ..found.clone() };
    if *wanted != found {
        return Some(format!("it is {wanted:?} and the file means {found:?}"));
    }
    None
}
