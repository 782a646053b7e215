//! Sliding windows: which layers attend to the newest keys alone.

use serde_json::Value;

use super::family::Family;
use super::keys::ConfigKeys;
use super::limits::MOST_POSITIONS;
use crate::train::model::error::LoadError;

/// The sliding window of each layer.
pub(super) fn windows(
    keys: &ConfigKeys<'_>,
    family: Family,
    layers: usize,
) -> Result<Vec<Option<usize>>, LoadError> {
    let Some(window) = keys.optional_size("sliding_window", MOST_POSITIONS)? else {
        return Ok(vec![None; layers]);
    };
    let is_qwen = matches!(family, Family::Qwen2 | Family::Qwen3);
    if is_qwen && !keys.flag("use_sliding_window", false)? {
        return Ok(vec![None; layers]);
    }
    let slides = slides(keys, family, layers)?;
    Ok(slides.into_iter().map(|slides| slides.then_some(window)).collect())
}

/// Whether each layer looks through a sliding window: as `layer_types` says, or by the family's
/// rule.
pub(super) fn slides(
    keys: &ConfigKeys<'_>,
    family: Family,
    layers: usize,
) -> Result<Vec<bool>, LoadError> {
    if let Some(types) = keys.get("layer_types").and_then(Value::as_array) {
        if types.len() < layers {
            return Err(ConfigKeys::error(format!(
                "\"layer_types\" names {} layers of {layers}",
                types.len()
            )));
        }
        return Ok(types.iter().take(layers).map(|kind| kind == "sliding_attention").collect());
    }
    let first_full = keys.optional_size("max_window_layers", MOST_POSITIONS)?.unwrap_or(layers);
    let default_period = if family == Family::Gemma2 { 2 } else { 6 };
    let period =
        keys.optional_size("sliding_window_pattern", MOST_POSITIONS)?.unwrap_or(default_period);
    Ok((0..layers)
        .map(|layer| match family {
            Family::Llama | Family::GptNeox | Family::Gpt2 => false,
            Family::Mistral | Family::Phi3 => true,
            Family::Qwen2 | Family::Qwen3 => layer >= first_full,
            Family::Gemma2 | Family::Gemma3 => (layer + 1) % period != 0,
        })
        .collect())
}
