//! A whole model for llama.cpp: the adapter added to the weights, configuration, tokenizer and
//! template in the one file.

use std::path::Path;

use super::gguf_adapter::no_place;
use super::{ExportError, Quantization, Tuned, modelfile, settings, vocabulary};
use crate::artifacts::gguf::{self as file, Planned, Type};
use crate::train::model::config::{Family, ModelConfig, Rope};
use crate::train::model::tokenizer::Tokenizer;
use crate::train::model::weights::gguf::{self, GgufLayout};
use crate::util::atomic_file;

/// Name of the model.
pub(super) const FILE_NAME: &str = "model.gguf";

/// What a frequency may differ by after its divisor has been stored in 32 bits, relative.
const FREQUENCY: f32 = 1e-5;

/// Texts whose tokens must be the same before and after: words, contractions, digits, spaces, lines,
/// signs, and letters and pictures of several bytes.
const PROBES: &[&str] = &[
    "Hello, world! It's 1234567 o'clock; we'LL see  three   spaces.",
    "\tdef f(x):\n\n    return x**2 - 3.14e10  # \"quoted\"\r\n\r\n",
    "Grüße aus Köln, 東京タワー 123, Привет мир, नमस्ते दुनिया 👋🏽🙂",
    " leading and trailing ",
];

/// Writes the model and an Ollama Modelfile beside it.
pub(super) fn write(
    tuned: &Tuned,
    quantization: Quantization,
    folder: &Path,
) -> Result<(), ExportError> {
    let layout = GgufLayout::of(&tuned.config);
    let architecture = layout.architecture();
    let expected = expected(&tuned.config);
    let (keys, factors) = match tuned.base.path.is_file() {
        true => settings::carried(tuned, architecture, quantization)?,
        false => {
            let context = match tuned.config.context_length == expected.context_length {
                // LongRoPE's files name the stretched length, which hone does not compute.
                true => longest(tuned),
                false => expected.context_length,
            };
            let (mut keys, factors) = settings::made(tuned, architecture, quantization, context)?;
            keys.extend(vocabulary::keys(&tuned.base, tuned.config.vocabulary)?);
            (keys, factors)
        }
    };
    let mut planned = Vec::new();
    let mut sources = Vec::new();
    for (name, values) in &factors {
        planned.push(Planned { name: name.clone(), shape: vec![values.len()], kind: Type::F32 });
    }
    for tensor in &tuned.tensors {
        let Some(place) = layout.place(&tensor.name) else {
            return Err(no_place(&tensor.name, &layout));
        };
        let shape = place.shape(&tensor.shape);
        let kind = kind_of(&tensor.name, &shape, quantization);
        planned.push(Planned { name: place.name.clone(), shape, kind });
        sources.push((tensor, place));
    }
    let lists: Vec<&Vec<f32>> = factors.values().collect();
    let path = folder.join(FILE_NAME);
    file::write(&path, &keys, &planned, |index| match lists.get(index) {
        Some(values) => Ok::<_, ExportError>((*values).clone()),
        None => {
            let (tensor, place) = sources[index - lists.len()];
            Ok(place.values(&tensor.shape, tuned.values(tensor)?))
        }
    })?;
    check(tuned, &expected, &path)?;
    let modelfile = modelfile::of_model(tuned, FILE_NAME);
    Ok(atomic_file::write(&folder.join(modelfile::FILE_NAME), modelfile.as_bytes())?)
}

/// Vectors and the table of learned positions stay in 32 bits; rows that are no whole blocks in 16.
fn kind_of(name: &str, shape: &[usize], quantization: Quantization) -> Type {
    if shape.len() < 2 || name.ends_with("wpe.weight") {
        return Type::F32;
    }
    let kind = quantization.kind();
    let row = shape.last().copied().unwrap_or(1);
    if kind.fits(row) { kind } else { Type::F16 }
}

/// The longest text that the configuration names.
fn longest(tuned: &Tuned) -> usize {
    let config = &tuned.base.config;
    let named = config["max_position_embeddings"].as_u64().or(config["n_positions"].as_u64());
    named.map_or(tuned.config.context_length, |length| length as usize)
}

/// What the file has to say. llama.cpp computes sliding windows of Gemma alone: of other families it
/// is promised texts alone that fit into the window, for which there is no difference.
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

/// Reads the file back: what has no key in it, or is understood otherwise, is refused here and not
/// noticed elsewhere.
fn check(tuned: &Tuned, expected: &ModelConfig, path: &Path) -> Result<(), ExportError> {
    let read = gguf::open(path)?;
    let found = ModelConfig::read(&read.config)?;
    // A file that was the base already may say more than llama.cpp computes.
    let is_carried = tuned.base.path.is_file();
    let wanted = if is_carried { &tuned.config } else { expected };
    if let Some(difference) = difference(wanted, &found) {
        return Err(ExportError::Unsupported(format!(
            "a GGUF file cannot say all that this model is: {difference}. llama.cpp would compute \
             another model: export it as \"merged\""
        )));
    }
    let tokenizer = Tokenizer::from_json(&read.tokenizer_json, read.special)
        .map_err(|error| ExportError::Unsupported(error.to_string()))?;
    for probe in PROBES {
        let ids = |tokenizer: &Tokenizer| {
            tokenizer
                .encode(probe)
                .map(|tokens| tokens.into_iter().map(|(id, _)| id).collect::<Vec<u32>>())
        };
        let (wanted, found) = (ids(&tuned.base.tokenizer), ids(&tokenizer));
        if wanted.as_ref().ok() != found.as_ref().ok() {
            return Err(ExportError::Unsupported(format!(
                "llama.cpp would cut text into other tokens than the model's tokenizer does, such as \
                 {probe:?}: export it as \"merged\""
            )));
        }
    }
    Ok(())
}

/// The first thing in which two configurations differ, as a sentence.
fn difference(wanted: &ModelConfig, found: &ModelConfig) -> Option<String> {
    let same_rope = |(wanted, found): (&Rope, &Rope)| {
        let mut pairs = wanted.frequencies.iter().zip(&found.frequencies);
        wanted.frequencies.len() == found.frequencies.len()
            && pairs.all(|(a, b)| (a - b).abs() <= FREQUENCY * a.abs())
            && (wanted.magnitude - found.magnitude).abs() <= FREQUENCY
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
