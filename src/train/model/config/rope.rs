//! Rotary positions: how far each pair of elements turns, from what a configuration says.

use serde_json::{Map, Value};

use super::family::Family;
use super::keys::ConfigKeys;
use super::limits::MOST_POSITIONS;
use super::sliding_window::slides;
use crate::train::model::error::LoadError;

/// Rotary positions of one layer: angle = position · frequency.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// One frequency for each pair of elements; the head's first `2 · len` elements turn.
    pub frequencies: Vec<f32>,
    /// Factor on cosine and sine.
    pub magnitude: f32,
}

/// The rotary positions of each layer.
pub(super) fn ropes(
    keys: &ConfigKeys<'_>,
    family: Family,
    layers: usize,
    head_dim: usize,
) -> Result<Vec<Rope>, LoadError> {
    if family == Family::Gemma3 {
        return gemma3_ropes(keys, layers, head_dim);
    }
    let empty = Map::new();
    let parameters = keys.get("rope_parameters").and_then(Value::as_object);
    let scaling = keys.get("rope_scaling").and_then(Value::as_object);
    let is_new_spelling = parameters.is_some();
    let section = ConfigKeys(parameters.or(scaling).unwrap_or(&empty));
    let (theta_key, partial_key) = match family {
        Family::GptNeox => ("rotary_emb_base", "rotary_pct"),
        _ => ("rope_theta", "partial_rotary_factor"),
    };
    let pick = |new: &str, old: &str| -> Result<Option<f64>, LoadError> {
        if is_new_spelling && let Some(value) = section.positive(new)? {
            return Ok(Some(value));
        }
        keys.positive(old)
    };
    let theta = pick("rope_theta", theta_key)?.unwrap_or(10_000.0);
    let default_share = if family == Family::GptNeox { 0.25 } else { 1.0 };
    let share = pick("partial_rotary_factor", partial_key)?.unwrap_or(default_share);
    let rope = rope(keys, &section, theta, share, head_dim)?;
    Ok(vec![rope; layers])
}

/// The longest sequence in tokens. LongRoPE turns longer sequences otherwise from their first token
/// on; hone computes those that the model was first trained for.
pub(super) fn context_length(keys: &ConfigKeys<'_>) -> Result<usize, LoadError> {
    let longest = keys.size("max_position_embeddings", MOST_POSITIONS)?;
    let parameters = keys.get("rope_parameters").or_else(|| keys.get("rope_scaling"));
    let Some(section) = parameters.and_then(Value::as_object).map(ConfigKeys) else {
        return Ok(longest);
    };
    if !section.is_long_rope() || section.get("short_factor") == section.get("long_factor") {
        return Ok(longest);
    }
    Ok(long_rope_original(keys, &section)?.map_or(longest, |original| longest.min(original)))
}

/// The longest sequence that a model with LongRoPE was first trained for.
fn long_rope_original(
    keys: &ConfigKeys<'_>,
    section: &ConfigKeys<'_>,
) -> Result<Option<usize>, LoadError> {
    let key = "original_max_position_embeddings";
    Ok(section.optional_size(key, MOST_POSITIONS)?.or(keys.optional_size(key, MOST_POSITIONS)?))
}

/// Gemma 3 turns sliding and full layers with different bases.
fn gemma3_ropes(
    keys: &ConfigKeys<'_>,
    layers: usize,
    head_dim: usize,
) -> Result<Vec<Rope>, LoadError> {
    let empty = Map::new();
    let (full, sliding) = if let Some(both) = keys.get("rope_parameters").and_then(Value::as_object)
    {
        let part = |name: &str, theta: f64| -> Result<Rope, LoadError> {
            let section = ConfigKeys(both.get(name).and_then(Value::as_object).unwrap_or(&empty));
            let theta = section.positive("rope_theta")?.unwrap_or(theta);
            rope(keys, &section, theta, 1.0, head_dim)
        };
        (part("full_attention", 1e6)?, part("sliding_attention", 1e4)?)
    } else {
        let scaling =
            ConfigKeys(keys.get("rope_scaling").and_then(Value::as_object).unwrap_or(&empty));
        let full_theta = keys.positive("rope_theta")?.unwrap_or(1e6);
        let local_theta = keys.positive("rope_local_base_freq")?.unwrap_or(1e4);
        let none = ConfigKeys(&empty);
        let full = rope(keys, &scaling, full_theta, 1.0, head_dim)?;
        (full, rope(keys, &none, local_theta, 1.0, head_dim)?)
    };
    let slides = slides(keys, Family::Gemma3, layers)?;
    Ok(slides
        .into_iter()
        .map(|slides| if slides { sliding.clone() } else { full.clone() })
        .collect())
}

/// Frequencies θ^(-2i/d), scaled as `rope_type` of `section` says.
fn rope(
    keys: &ConfigKeys<'_>,
    section: &ConfigKeys<'_>,
    theta: f64,
    share: f64,
    head_dim: usize,
) -> Result<Rope, LoadError> {
    if share > 1.0 {
        return Err(ConfigKeys::error(format!("{share} of a head's elements turn, not 1 at most")));
    }
    let turning = (head_dim as f64 * share) as usize;
    let base: Vec<f64> =
        (0..turning / 2).map(|i| theta.powf(-(2.0 * i as f64) / turning as f64)).collect();
    let kind = section.rope_type();
    let mut magnitude = 1.0;
    let need = |key: &str| -> Result<f64, LoadError> {
        section
            .positive(key)?
            .ok_or_else(|| ConfigKeys::error(format!("rope type {kind:?} needs {key:?}")))
    };
    let frequencies: Vec<f64> = match kind {
        "default" => base,
        "linear" => {
            let factor = need("factor")?;
            base.into_iter().map(|frequency| frequency / factor).collect()
        }
        "llama3" => {
            let factor = need("factor")?;
            let low = need("low_freq_factor")?;
            let high = need("high_freq_factor")?;
            let original = need("original_max_position_embeddings")?;
            base.into_iter()
                .map(|frequency| llama3(frequency, factor, low, high, original))
                .collect()
        }
        _ if section.is_long_rope() => {
            magnitude = long_rope_magnitude(keys, section)?;
            let divisors = section.numbers("short_factor")?;
            if divisors.len() != base.len() {
                return Err(ConfigKeys::error(format!(
                    "\"short_factor\" has {} numbers for {} pairs that turn",
                    divisors.len(),
                    base.len()
                )));
            }
            base.into_iter().zip(divisors).map(|(frequency, by)| frequency / by).collect()
        }
        _ => {
            return Err(ConfigKeys::error(format!(
                "rope type {kind:?} is not supported; hone knows default, linear, llama3 and longrope"
            )));
        }
    };
    Ok(Rope {
        frequencies: frequencies.into_iter().map(|frequency| frequency as f32).collect(),
        magnitude,
    })
}

/// LongRoPE's factor on cosine and sine: √(1 + ln(stretch) / ln(original length)).
fn long_rope_magnitude(keys: &ConfigKeys<'_>, section: &ConfigKeys<'_>) -> Result<f32, LoadError> {
    if let Some(factor) = section.positive("attention_factor")? {
        return Ok(factor as f32);
    }
    let longest = keys.size("max_position_embeddings", MOST_POSITIONS)? as f64;
    let original = long_rope_original(keys, section)?.map_or(longest, |length| length as f64);
    let stretch = section.positive("factor")?.unwrap_or(longest / original);
    if stretch <= 1.0 {
        return Ok(1.0);
    }
    Ok((1.0 + stretch.ln() / original.ln()).sqrt() as f32)
}

/// Llama 3.1's rule: long waves are stretched by `factor`, short ones stay, between them it blends.
fn llama3(frequency: f64, factor: f64, low: f64, high: f64, original: f64) -> f64 {
    let wavelength = 2.0 * std::f64::consts::PI / frequency;
    if wavelength > original / low {
        return frequency / factor;
    }
    if wavelength < original / high {
        return frequency;
    }
    let blend = (original / wavelength - low) / (high - low);
    (1.0 - blend) * frequency / factor + blend * frequency
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::train::model::config::ModelConfig;

    #[test]
    fn long_rope_turns_as_in_transformers_up_to_the_length_of_the_first_training() {
        let mut config = json!({
            "model_type": "phi3", "vocab_size": 8, "hidden_size": 32, "num_hidden_layers": 1,
            "num_attention_heads": 4, "intermediate_size": 8, "max_position_embeddings": 256,
            "original_max_position_embeddings": 64, "rope_theta": 10000.0,
            "rope_scaling": {
                "type": "longrope",
                "short_factor": [1.0, 1.1, 1.3, 1.7],
                "long_factor": [1.5, 2.0, 3.0, 4.0],
            },
        });
        let model = ModelConfig::read(&config).unwrap();
        // Computed by transformers 5.24.
        let wanted = [1.0, 0.090_909_09, 0.007_692_307_7, 0.000_588_235_27];
        for (made, wanted) in model.ropes[0].frequencies.iter().zip(wanted) {
            assert!((made / wanted - 1.0f32).abs() < 1e-6, "{made} {wanted}");
        }
        assert!((model.ropes[0].magnitude - 1.154_700_5).abs() < 1e-6);
        assert_eq!(model.context_length, 64, "beyond it the first tokens would turn otherwise");

        config["rope_scaling"]["short_factor"] = json!([1.0, 1.1]);
        let error = ModelConfig::read(&config).unwrap_err().to_string();
        assert!(error.contains("2 numbers for 4 pairs"), "{error}");
    }
}
