//! What llama.cpp's converter does to each architecture on the way into a GGUF file, and back:
//! names of tensors, changes of their layout, keys of the configuration.
//!
//! Some of Hugging Face's settings have no key in the file; llama.cpp knows them by heart, and so
//! does this module, each with the words "no key".

use std::collections::BTreeMap;

use candle_core::quantized::gguf_file::Value;
use serde_json::{Map, json};

use super::metadata::{Metadata, whole};
use super::transform::TensorTransform;
use crate::train::model::config::{Family, ModelConfig};
use crate::train::model::error::LoadError;

/// The architectures by their names in GGUF files. Mistral's models are `llama` there.
const KNOWN: &[(&str, Family)] = &[
    ("llama", Family::Llama),
    ("qwen2", Family::Qwen2),
    ("qwen3", Family::Qwen3),
    ("gemma2", Family::Gemma2),
    ("gemma3", Family::Gemma3),
    ("phi3", Family::Phi3),
    ("gpt2", Family::Gpt2),
    ("gptneox", Family::GptNeox),
];

/// Divisors of the rotary frequencies, which are no weights: of Llama 3's rule, and of LongRoPE's
/// two.
const ROPE_FREQUENCIES: &str = "rope_freqs.weight";
const ROPE_FACTORS_LONG: &str = "rope_factors_long.weight";
const ROPE_FACTORS_SHORT: &str = "rope_factors_short.weight";

/// The architecture of one file.
pub(super) struct Architecture {
    name: &'static str,
    family: Family,
    heads: usize,
    kv_heads: usize,
}

/// Whether a tensor is one of the lists of rotary divisors.
pub(super) fn is_rope_factors(stored: &str) -> bool {
    [ROPE_FREQUENCIES, ROPE_FACTORS_LONG, ROPE_FACTORS_SHORT].contains(&stored)
}

impl Architecture {
    /// The architecture that the file names.
    pub(super) fn of(metadata: &Metadata<'_>) -> Result<Self, LoadError> {
        let found = metadata.text("general.architecture")?;
        let Some((name, family)) = KNOWN.iter().find(|(name, _)| *name == found) else {
            let known: Vec<&str> = KNOWN.iter().map(|(name, _)| *name).collect();
            return Err(LoadError::UnknownArchitecture {
                found: format!("{found} (in a GGUF file)"),
                known: format!("{} in GGUF files", known.join(", ")),
            });
        };
        let heads = metadata.size(&format!("{name}.attention.head_count"))?;
        let kv_heads = metadata.optional_size(&format!("{name}.attention.head_count_kv"))?;
        Ok(Self { name, family: *family, heads, kv_heads: kv_heads.unwrap_or(heads) })
    }

    /// That of a model whose configuration is known.
    pub(super) fn for_model(config: &ModelConfig) -> Self {
        let name = match config.family {
            Family::Llama | Family::Mistral => "llama",
            Family::Qwen2 => "qwen2",
            Family::Qwen3 => "qwen3",
            Family::Gemma2 => "gemma2",
            Family::Gemma3 => "gemma3",
            Family::Phi3 => "phi3",
            Family::Gpt2 => "gpt2",
            Family::GptNeox => "gptneox",
        };
        Self { name, family: config.family, heads: config.heads, kv_heads: config.kv_heads }
    }

    pub(super) fn name(&self) -> &str {
        self.name
    }

    /// Its heads, for messages.
    pub(super) fn heads(&self) -> String {
        format!("{} query and {} key heads", self.heads, self.kv_heads)
    }

    fn is_gemma(&self) -> bool {
        matches!(self.family, Family::Gemma2 | Family::Gemma3)
    }

    /// Hugging Face's name of a tensor, and how its layout was changed.
    pub(super) fn hugging_face_name(&self, stored: &str) -> Option<(String, TensorTransform)> {
        let (module, ending) = stored.rsplit_once('.')?;
        if !matches!(ending, "weight" | "bias") {
            return None;
        }
        let (known, change) = match module.strip_prefix("blk.") {
            None => (self.outer_name(module)?.to_owned(), TensorTransform::None),
            Some(rest) => {
                let (layer, part) = rest.split_once('.')?;
                let layer: usize = layer.parse().ok()?;
                let (part, change) = self.part(part)?;
                (format!("{}.{layer}.{part}", self.blocks()), change)
            }
        };
        let change = match change {
            TensorTransform::Transposed if ending == "bias" => TensorTransform::None,
            TensorTransform::None if self.is_gemma() && known.ends_with("norm") => {
                TensorTransform::PlusOne
            }
            other => other,
        };
        Some((format!("{known}.{ending}"), change))
    }

    fn outer_name(&self, module: &str) -> Option<&'static str> {
        Some(match (self.family, module) {
            (Family::Gpt2, "token_embd") => "transformer.wte",
            (Family::Gpt2, "position_embd") => "transformer.wpe",
            (Family::Gpt2, "output_norm") => "transformer.ln_f",
            (Family::GptNeox, "token_embd") => "gpt_neox.embed_in",
            (Family::GptNeox, "output_norm") => "gpt_neox.final_layer_norm",
            (Family::GptNeox, "output") => "embed_out",
            (_, "token_embd") => "model.embed_tokens",
            (_, "output_norm") => "model.norm",
            (_, "output") => "lm_head",
            _ => return None,
        })
    }

    /// What stands before a block's number.
    fn blocks(&self) -> &'static str {
        match self.family {
            Family::Gpt2 => "transformer.h",
            Family::GptNeox => "gpt_neox.layers",
            _ => "model.layers",
        }
    }

    /// A module of a block.
    fn part(&self, stored: &str) -> Option<(&'static str, TensorTransform)> {
        let plain = |name: &'static str| Some((name, TensorTransform::None));
        match self.family {
            Family::Gpt2 => match stored {
                "attn_norm" => plain("ln_1"),
                "attn_qkv" => Some(("attn.c_attn", TensorTransform::Transposed)),
                "attn_output" => Some(("attn.c_proj", TensorTransform::Transposed)),
                "ffn_norm" => plain("ln_2"),
                "ffn_up" => Some(("mlp.c_fc", TensorTransform::Transposed)),
                "ffn_down" => Some(("mlp.c_proj", TensorTransform::Transposed)),
                _ => None,
            },
            Family::GptNeox => match stored {
                "attn_norm" => plain("input_layernorm"),
                "attn_qkv" => {
                    let change = TensorTransform::HeadsApart { heads: self.heads };
                    Some(("attention.query_key_value", change))
                }
                "attn_output" => plain("attention.dense"),
                "ffn_norm" => plain("post_attention_layernorm"),
                "ffn_up" => plain("mlp.dense_h_to_4h"),
                "ffn_down" => plain("mlp.dense_4h_to_h"),
                _ => None,
            },
            Family::Llama | Family::Mistral if stored == "attn_q" => {
                Some(("self_attn.q_proj", TensorTransform::Interleaved { heads: self.heads }))
            }
            Family::Llama | Family::Mistral if stored == "attn_k" => {
                Some(("self_attn.k_proj", TensorTransform::Interleaved { heads: self.kv_heads }))
            }
            _ => match stored {
                "attn_norm" => plain("input_layernorm"),
                "attn_q" => plain("self_attn.q_proj"),
                "attn_k" => plain("self_attn.k_proj"),
                "attn_v" => plain("self_attn.v_proj"),
                "attn_qkv" => plain("self_attn.qkv_proj"),
                "attn_q_norm" => plain("self_attn.q_norm"),
                "attn_k_norm" => plain("self_attn.k_norm"),
                "attn_output" => plain("self_attn.o_proj"),
                "ffn_norm" if self.is_gemma() => plain("pre_feedforward_layernorm"),
                "ffn_norm" => plain("post_attention_layernorm"),
                "post_attention_norm" => plain("post_attention_layernorm"),
                "post_ffw_norm" => plain("post_feedforward_layernorm"),
                "ffn_gate" => plain("mlp.gate_proj"),
                "ffn_up" if self.family == Family::Phi3 => plain("mlp.gate_up_proj"),
                "ffn_up" => plain("mlp.up_proj"),
                "ffn_down" => plain("mlp.down_proj"),
                _ => None,
            },
        }
    }

    /// The file's keys as a `config.json`. `factors` are the lists of rotary divisors, `shape_of` the
    /// stored shape of a tensor by the file's name.
    pub(super) fn configuration<'a>(
        &self,
        metadata: &Metadata<'_>,
        factors: &BTreeMap<String, Vec<f32>>,
        shape_of: impl Fn(&str) -> Option<&'a [usize]>,
    ) -> Result<serde_json::Value, LoadError> {
        let key = |key: &str| format!("{}.{key}", self.name);
        let hidden = metadata.size(&key("embedding_length"))?;
        let layers = metadata.size(&key("block_count"))?;
        let head_dim = self.head_dim(metadata, hidden)?;
        let vocabulary = shape_of("token_embd.weight").and_then(|shape| shape.first().copied());
        let tokens = metadata.list("tokenizer.ggml.tokens")?.len();
        if vocabulary.is_some_and(|rows| rows < tokens) {
            let what = format!("lists {tokens} tokens, more than the embedding has rows");
            return Err(metadata.error("tokenizer.ggml.tokens", &what));
        }
        let has = |name: &str| shape_of(name).is_some();
        let context_length = metadata.size(&key("context_length"))?;
        let mut config = Map::new();
        let mut set = |name: &str, value: serde_json::Value| {
            config.insert(name.to_owned(), value);
        };
        set("vocab_size", vocabulary.unwrap_or(tokens).into());
        set("tie_word_embeddings", (!has("output.weight")).into());
        set("bos_token_id", json!(metadata.optional_id("tokenizer.ggml.bos_token_id")?));
        set("eos_token_id", json!(metadata.optional_id("tokenizer.ggml.eos_token_id")?));
        if self.family == Family::Gpt2 {
            set("model_type", "gpt2".into());
            set("n_embd", hidden.into());
            set("n_layer", layers.into());
            set("n_head", self.heads.into());
            set("n_inner", metadata.size(&key("feed_forward_length"))?.into());
            set("n_positions", context_length.into());
            let epsilon = metadata.number(&key("attention.layer_norm_epsilon"))?;
            set("layer_norm_epsilon", epsilon.into());
            // No key: llama.cpp computes GELU in its tanh form.
            set("activation_function", "gelu_new".into());
            return Ok(config.into());
        }
        set("hidden_size", hidden.into());
        set("intermediate_size", metadata.size(&key("feed_forward_length"))?.into());
        set("num_hidden_layers", layers.into());
        set("num_attention_heads", self.heads.into());
        set("num_key_value_heads", self.kv_heads.into());
        set("head_dim", head_dim.into());
        set("max_position_embeddings", context_length.into());
        let window = self.window(metadata)?;
        set("sliding_window", json!(window));
        let rope = self.rope(metadata, factors, head_dim)?;
        if self.family == Family::GptNeox {
            set("model_type", "gpt_neox".into());
            let epsilon = metadata.number(&key("attention.layer_norm_epsilon"))?;
            set("layer_norm_eps", epsilon.into());
            let is_parallel = metadata.optional_flag(&key("use_parallel_residual"))?;
            set("use_parallel_residual", is_parallel.unwrap_or(true).into());
            // No key: the published models compute GELU exactly.
            set("hidden_act", "gelu".into());
            set("rope_parameters", rope);
            return Ok(config.into());
        }
        let epsilon = metadata.number(&key("attention.layer_norm_rms_epsilon"))?;
        set("rms_norm_eps", epsilon.into());
        set("attention_bias", (has("blk.0.attn_q.bias") || has("blk.0.attn_qkv.bias")).into());
        set("mlp_bias", has("blk.0.ffn_up.bias").into());
        if self.is_gemma() {
            let is_sliding = self.sliding_layers(metadata, layers, window)?;
            let kind = |slides: &bool| match slides {
                true => "sliding_attention",
                false => "full_attention",
            };
            set("layer_types", is_sliding.iter().map(kind).collect());
            set("hidden_activation", "gelu_pytorch_tanh".into());
            set("query_pre_attn_scalar", self.scale_width(hidden, head_dim, layers).into());
            let cap = metadata.optional_number(&key("attn_logit_softcapping"))?;
            set("attn_logit_softcapping", json!(cap));
            let cap = metadata.optional_number(&key("final_logit_softcapping"))?;
            set("final_logit_softcapping", json!(cap));
        } else {
            set("hidden_act", "silu".into());
        }
        let (model_type, rope) = match self.family {
            Family::Gemma2 => ("gemma2", rope),
            Family::Gemma3 => {
                // Sliding layers turn by another base, unscaled.
                let base = metadata.optional_number(&key("rope.freq_base_swa"))?;
                let sliding = json!({"rope_theta": base.unwrap_or(10_000.0)});
                ("gemma3_text", json!({"full_attention": rope, "sliding_attention": sliding}))
            }
            Family::Qwen2 => ("qwen2", rope),
            Family::Qwen3 => ("qwen3", rope),
            Family::Phi3 => ("phi3", rope),
            _ if window.is_some() => ("mistral", rope),
            _ => ("llama", rope),
        };
        set("model_type", model_type.into());
        set("rope_parameters", rope);
        Ok(config.into())
    }

    fn head_dim(&self, metadata: &Metadata<'_>, hidden: usize) -> Result<usize, LoadError> {
        let key = format!("{}.attention.key_length", self.name);
        let head_dim = metadata.optional_size(&key)?.unwrap_or(hidden / self.heads);
        let key = format!("{}.attention.value_length", self.name);
        match metadata.optional_size(&key)? {
            Some(other) if other != head_dim => {
                let what =
                    format!("is {other}, but keys are {head_dim} wide: hone knows equal ones");
                Err(metadata.error(&key, &what))
            }
            _ => Ok(head_dim),
        }
    }

    /// The sliding window; zero stands for none.
    fn window(&self, metadata: &Metadata<'_>) -> Result<Option<usize>, LoadError> {
        let key = format!("{}.attention.sliding_window", self.name);
        match metadata.optional(&key).map(whole) {
            None | Some(Some(0)) => Ok(None),
            Some(_) => Ok(Some(metadata.size(&key)?)),
        }
    }

    /// Which layers of a Gemma slide: as the file says, a period or a list, else by the family's
    /// rule.
    fn sliding_layers(
        &self,
        metadata: &Metadata<'_>,
        layers: usize,
        window: Option<usize>,
    ) -> Result<Vec<bool>, LoadError> {
        if window.is_none() {
            return Ok(vec![false; layers]);
        }
        let key = format!("{}.attention.sliding_window_pattern", self.name);
        let period = match metadata.optional(&key) {
            Some(Value::Array(list)) => {
                let flags = list.iter().map(|value| match value {
                    Value::Bool(slides) => Some(*slides),
                    _ => None,
                });
                let flags = flags.collect::<Option<Vec<bool>>>();
                return flags.filter(|flags| flags.len() == layers).ok_or_else(|| {
                    metadata.error(&key, "does not say of each layer whether it slides")
                });
            }
            Some(_) => metadata.size(&key)?,
            None if self.family == Family::Gemma2 => 2,
            None => 6,
        };
        Ok((0..layers).map(|layer| (layer + 1) % period != 0).collect())
    }

    /// The width whose root divides the attention scores of a Gemma. No key: llama.cpp knows the
    /// models of 27 billion parameters, which take another than the head's, by their number of
    /// layers.
    fn scale_width(&self, hidden: usize, head_dim: usize, layers: usize) -> usize {
        match (self.family, layers) {
            (Family::Gemma2, 46) | (Family::Gemma3, 62) => hidden / self.heads,
            _ => head_dim,
        }
    }

    /// The rotary positions, as `rope_parameters` has them.
    fn rope(
        &self,
        metadata: &Metadata<'_>,
        factors: &BTreeMap<String, Vec<f32>>,
        head_dim: usize,
    ) -> Result<serde_json::Value, LoadError> {
        let key = |key: &str| format!("{}.rope.{key}", self.name);
        let theta = metadata.optional_number(&key("freq_base"))?.unwrap_or(10_000.0);
        let mut rope = json!({"rope_type": "default", "rope_theta": theta});
        let turning = metadata.optional_size(&key("dimension_count"))?.unwrap_or(head_dim);
        let is_partial = matches!(self.family, Family::Phi3 | Family::GptNeox);
        if turning > head_dim || (turning != head_dim && !is_partial) {
            let what = format!("is {turning}, but heads are {head_dim} wide");
            return Err(metadata.error(&key("dimension_count"), &what));
        }
        if is_partial {
            rope["partial_rotary_factor"] = share(turning, head_dim).into();
        }
        let kind = metadata.optional_text(&key("scaling.type"))?.unwrap_or("none");
        let list = |name: &str| factors.get(name);
        if !factors.is_empty() && !matches!(kind, "none" | "longrope") {
            let what = format!("is {kind:?}, and the file has divisors of its own beside");
            return Err(metadata.error(&key("scaling.type"), &what));
        }
        if let Some(divisors) = list(ROPE_FREQUENCIES) {
            // Llama 3's rule, worked out: the same divisors at every length.
            rope["rope_type"] = "longrope".into();
            rope["short_factor"] = json!(divisors);
            rope["long_factor"] = json!(divisors);
            rope["attention_factor"] = 1.0.into();
        } else if let (Some(short), Some(long)) =
            (list(ROPE_FACTORS_SHORT), list(ROPE_FACTORS_LONG))
        {
            rope["rope_type"] = "longrope".into();
            rope["short_factor"] = json!(short);
            rope["long_factor"] = json!(long);
            let factor = metadata.optional_number(&key("scaling.attn_factor"))?;
            rope["attention_factor"] = factor.unwrap_or(1.0).into();
            let original = metadata.size(&key("scaling.original_context_length"))?;
            rope["original_max_position_embeddings"] = original.into();
        } else if kind == "linear" {
            rope["rope_type"] = "linear".into();
            rope["factor"] = metadata.number(&key("scaling.factor"))?.into();
        } else if kind != "none" {
            let what = format!("is {kind:?}, a scaling that hone does not compute");
            return Err(metadata.error(&key("scaling.type"), &what));
        }
        Ok(rope)
    }
}

/// The part of the head that turns, such that as many elements come out of it again.
fn share(turning: usize, head_dim: usize) -> f64 {
    let share = turning as f64 / head_dim as f64;
    if (head_dim as f64 * share) as usize == turning { share } else { share.next_up() }
}
