//! The metadata of a GGUF file without the tokenizer's, as llama.cpp's converter writes it, and the rotary
//! divisors, which are tensors of the file.

use candle_core::quantized::gguf_file::Value;
use serde_json::Value as Json;

use super::error::ExportError;
use super::format::Quantization;
use super::opened_model::OpenedModel;
use crate::artifacts::gguf::GgufMetadata;
use crate::train::backend::NormKind;
use crate::train::model::config::{Family, ModelConfig};
use crate::train::model::weights::gguf::{self, RopeFactors};

/// Prefixes of keys that describe a file, not its model: its quantization, and the parts of a split file. They
/// are not copied.
const FILE_KEYS: &[&str] = &["quantize.", "split.", "general.file_type", "general.name"];

/// A text as a value.
pub(super) fn text(text: &str) -> Value {
    Value::String(text.to_owned())
}

fn uint(number: usize) -> Value {
    Value::U32(u32::try_from(number).unwrap_or(u32::MAX))
}

/// The keys of every file.
fn common(model: &OpenedModel, architecture: &str, quantization: Quantization) -> GgufMetadata {
    let file_type = match quantization {
        Quantization::F16 => 1,
        Quantization::Q8_0 => 7,
    };
    vec![
        ("general.architecture".to_owned(), text(architecture)),
        ("general.type".to_owned(), text("model")),
        ("general.name".to_owned(), text(&model.name)),
        ("general.file_type".to_owned(), Value::U32(file_type)),
        ("general.quantization_version".to_owned(), Value::U32(2)),
    ]
}

/// The metadata of a base model that is a GGUF file itself: a copy, with the tokenizer's.
pub(super) fn copied(
    model: &OpenedModel,
    architecture: &str,
    quantization: Quantization,
) -> Result<(GgufMetadata, RopeFactors), ExportError> {
    let (found, factors) = gguf::keys(&model.base.path)?;
    let mut keys = common(model, architecture, quantization);
    let mut rest: GgufMetadata = found.into_iter().collect();
    rest.sort_by(|a, b| a.0.cmp(&b.0));
    for (key, value) in rest {
        let is_file_key = FILE_KEYS.iter().any(|start| key.starts_with(start));
        if !is_file_key && !keys.iter().any(|(other, _)| *other == key) {
            keys.push((key, value));
        }
    }
    Ok((keys, factors))
}

/// The metadata of a model in Hugging Face's layout, without the tokenizer's. `context` is the context length
/// in the file.
pub(super) fn from_config(
    model: &OpenedModel,
    architecture: &str,
    quantization: Quantization,
    context: usize,
) -> Result<(GgufMetadata, RopeFactors), ExportError> {
    let config = &model.config;
    let mut keys = common(model, architecture, quantization);
    let mut set = |key: &str, value: Value| keys.push((format!("{architecture}.{key}"), value));
    set("vocab_size", uint(config.vocabulary));
    set("context_length", uint(context));
    set("embedding_length", uint(config.hidden));
    set("block_count", uint(config.layers));
    set("feed_forward_length", uint(config.intermediate));
    set("attention.head_count", uint(config.heads));
    set("attention.head_count_kv", uint(config.kv_heads));
    let epsilon = match config.norm {
        NormKind::Layer => "attention.layer_norm_epsilon",
        NormKind::Rms | NormKind::RmsOnePlus => "attention.layer_norm_rms_epsilon",
    };
    set(epsilon, Value::F32(config.norm_epsilon));
    if config.family == Family::GptNeox {
        set("use_parallel_residual", Value::Bool(config.parallel_residual));
    }
    if let Some(cap) = config.score_cap {
        set("attn_logit_softcapping", Value::F32(cap));
    }
    if let Some(cap) = config.logit_cap {
        set("final_logit_softcapping", Value::F32(cap));
    }
    if config.has_post_norms() {
        for (key, value) in windows(config)? {
            set(key, value);
        }
    }
    if config.family == Family::Phi3 {
        // Zero means none.
        set("attention.sliding_window", Value::U32(0));
    }
    let mut factors = RopeFactors::new();
    if let Some(rope) = config.ropes.iter().zip(&config.windows).find(|(_, window)| {
        // Gemma 3 has other rotary positions in full layers than in sliding ones. The main keys are those of
        // the full layers.
        config.family != Family::Gemma3 || window.is_none()
    }) {
        set("attention.key_length", uint(config.head_dim));
        set("attention.value_length", uint(config.head_dim));
        set("rope.dimension_count", uint(2 * rope.0.frequencies.len()));
        let section = rope_section(&model.base.config);
        let theta = theta(&model.base.config, &section, config.family);
        set("rope.freq_base", Value::F32(theta as f32));
        if config.family == Family::Gemma3 {
            let sliding = &model.base.config["rope_parameters"]["sliding_attention"]["rope_theta"];
            let sliding = sliding.as_f64().or(model.base.config["rope_local_base_freq"].as_f64());
            set("rope.freq_base_swa", Value::F32(sliding.unwrap_or(10_000.0) as f32));
        }
        for (key, value) in scaling(&model.base.config, &section, rope.0.magnitude)? {
            set(key, value);
        }
        factors = rope_factors(&section, &rope.0.frequencies, theta);
    }
    Ok((keys, factors))
}

/// The sliding window of a Gemma model, and the period of its full layers.
fn windows(config: &ModelConfig) -> Result<Vec<(&'static str, Value)>, ExportError> {
    let Some(window) = config.windows.iter().flatten().next() else {
        return Ok(Vec::new());
    };
    let slides: Vec<bool> = config.windows.iter().map(Option::is_some).collect();
    let period = slides.iter().position(|slides| !slides).map(|first| first + 1);
    let fits = |period: usize| {
        slides.iter().enumerate().all(|(layer, slides)| *slides == ((layer + 1) % period != 0))
    };
    // If no layer is full, any period longer than the model expresses it.
    let period = period.unwrap_or(slides.len() + 1);
    if !fits(period) {
        return Err(ExportError::Unsupported(format!(
            "the model's layers slide as {slides:?}, and a GGUF file can say no more than that every \
             n-th layer does not"
        )));
    }
    Ok(vec![
        ("attention.sliding_window", uint(*window)),
        ("attention.sliding_window_pattern", uint(period)),
    ])
}

/// The section of the configuration about rotary positions, under either name.
fn rope_section(config: &Json) -> Json {
    let section = match &config["rope_parameters"] {
        Json::Null => &config["rope_scaling"],
        found => found,
    };
    section.get("full_attention").unwrap_or(section).clone()
}

fn theta(config: &Json, section: &Json, family: Family) -> f64 {
    let default = if family == Family::Gemma3 { 1e6 } else { 10_000.0 };
    let places = [&section["rope_theta"], &config["rope_theta"], &config["rotary_emb_base"]];
    places.into_iter().find_map(Json::as_f64).unwrap_or(default)
}

fn rope_type(section: &Json) -> &str {
    section["rope_type"].as_str().or(section["type"].as_str()).unwrap_or("default")
}

/// The keys of scaled rotary positions. Llama 3's scaling has none: its divisors are a tensor.
fn scaling(
    config: &Json,
    section: &Json,
    magnitude: f32,
) -> Result<Vec<(&'static str, Value)>, ExportError> {
    match rope_type(section) {
        "default" | "llama3" => Ok(Vec::new()),
        "linear" => {
            let factor = section["factor"].as_f64().unwrap_or(1.0);
            Ok(vec![
                ("rope.scaling.type", text("linear")),
                ("rope.scaling.factor", Value::F32(factor as f32)),
            ])
        }
        "longrope" | "su" => {
            let key = "original_max_position_embeddings";
            let original = section[key].as_u64().or(config[key].as_u64());
            let longest = config["max_position_embeddings"].as_u64();
            let original = original.or(longest).unwrap_or_default();
            Ok(vec![
                ("rope.scaling.attn_factor", Value::F32(magnitude)),
                ("rope.scaling.original_context_length", uint(original as usize)),
            ])
        }
        other => Err(ExportError::Unsupported(format!(
            "rotary positions of the type {other:?} have no keys in a GGUF file that hone knows"
        ))),
    }
}

/// The divisors of the rotary frequencies, if there are any.
fn rope_factors(section: &Json, frequencies: &[f32], theta: f64) -> RopeFactors {
    let list = |name: &str| -> Vec<f32> {
        let numbers = section[name].as_array().into_iter().flatten();
        numbers.filter_map(Json::as_f64).map(|number| number as f32).collect()
    };
    match rope_type(section) {
        "llama3" => {
            let dimensions = 2.0 * frequencies.len() as f64;
            let plain = |pair: usize| theta.powf(-(2.0 * pair as f64) / dimensions);
            let pairs = frequencies.iter().enumerate();
            let divisors = pairs.map(|(pair, made)| (plain(pair) / f64::from(*made)) as f32);
            RopeFactors::from([("rope_freqs.weight".to_owned(), divisors.collect())])
        }
        "longrope" | "su" => RopeFactors::from([
            ("rope_factors_short.weight".to_owned(), list("short_factor")),
            ("rope_factors_long.weight".to_owned(), list("long_factor")),
        ]),
        _ => RopeFactors::new(),
    }
}
