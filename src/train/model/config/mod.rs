//! What a base model's configuration says, read once into what the decoder needs.
//!
//! Reads Hugging Face's `config.json` in both spellings: `rope_parameters` (transformers 5) and
//! `rope_theta` with `rope_scaling` (transformers 4).

mod family;
mod keys;
mod limits;
mod rope;
mod sliding_window;

use serde_json::Value;

pub use self::family::{Family, KNOWN, class_of};
use self::keys::ConfigKeys;
use self::limits::{
    MOST_HEAD_WIDTH, MOST_HEADS, MOST_LAYERS, MOST_POSITIONS, MOST_TOKENS, MOST_WIDTH,
};
pub use self::rope::Rope;
use self::rope::{context_length, ropes};
use self::sliding_window::windows;
use super::error::LoadError;
use crate::train::backend::{Activation, NormKind};

/// Everything that the decoder needs to know of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// The architecture.
    pub family: Family,
    /// Rows of the embedding.
    pub vocabulary: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Blocks.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Width of the MLP.
    pub intermediate: usize,
    /// Longest sequence in tokens.
    pub context_length: usize,
    /// How rows are normalised.
    pub norm: NormKind,
    /// The norm's ε.
    pub norm_epsilon: f32,
    /// Factor on the embedding.
    pub embedding_scale: f32,
    /// Rotary positions of each layer; empty with learned positions.
    pub ropes: Vec<Rope>,
    /// Whether positions have an embedding of their own (GPT-2).
    pub learned_positions: bool,
    /// Factor on attention scores.
    pub attention_scale: f32,
    /// Soft cap on attention scores.
    pub score_cap: Option<f32>,
    /// Soft cap on logits.
    pub logit_cap: Option<f32>,
    /// Sliding window of each layer.
    pub windows: Vec<Option<usize>>,
    /// The MLP's non-linearity.
    pub activation: Activation,
    /// Whether q, k, v carry a bias.
    pub qkv_bias: bool,
    /// Whether the attention's output carries a bias.
    pub output_bias: bool,
    /// Whether the MLP's layers carry a bias.
    pub mlp_bias: bool,
    /// Whether each head's q and k are normalised.
    pub qk_norm: bool,
    /// Whether attention and MLP both read the block's input (GPT-NeoX).
    pub parallel_residual: bool,
    /// Whether the head is the embedding.
    pub tied: bool,
}

impl ModelConfig {
    /// Whether the MLP multiplies two layers, one of them through the non-linearity.
    pub fn is_gated(&self) -> bool {
        !matches!(self.family, Family::Gpt2 | Family::GptNeox)
    }

    /// Whether attention and MLP are normalised before they join the residual stream.
    pub fn has_post_norms(&self) -> bool {
        matches!(self.family, Family::Gemma2 | Family::Gemma3)
    }

    /// Reads `config.json`.
    ///
    /// # Errors
    /// An architecture that hone does not know, a missing or senseless key: by name.
    pub fn read(config: &Value) -> Result<Self, LoadError> {
        let Some(object) = config.as_object() else {
            return Err(ConfigKeys::error("it is not a JSON object".to_owned()));
        };
        let keys = ConfigKeys(object);
        let found = keys.text("model_type").unwrap_or("(no model_type)");
        let family = match found {
            "llama" => Family::Llama,
            "mistral" => Family::Mistral,
            "qwen2" => Family::Qwen2,
            "qwen3" => Family::Qwen3,
            "gemma2" => Family::Gemma2,
            "gemma3_text" => Family::Gemma3,
            "phi3" => Family::Phi3,
            "gpt2" => Family::Gpt2,
            "gpt_neox" => Family::GptNeox,
            _ => {
                return Err(LoadError::UnknownArchitecture {
                    found: found.to_owned(),
                    known: KNOWN.join(", "),
                });
            }
        };
        let config = if family == Family::Gpt2 {
            Self::read_gpt2(&keys)?
        } else {
            Self::read_modern(&keys, family)?
        };
        config.check()?;
        Ok(config)
    }

    fn read_gpt2(keys: &ConfigKeys<'_>) -> Result<Self, LoadError> {
        let hidden = keys.size("n_embd", MOST_WIDTH)?;
        let heads = keys.size("n_head", MOST_HEADS)?;
        let layers = keys.size("n_layer", MOST_LAYERS)?;
        let head_dim = hidden / heads;
        let by_layer = keys.flag("scale_attn_by_inverse_layer_idx", false)?;
        if by_layer || !keys.flag("scale_attn_weights", true)? {
            return Err(ConfigKeys::error(
                "GPT-2 variants that scale attention otherwise are not supported".to_owned(),
            ));
        }
        Ok(Self {
            family: Family::Gpt2,
            vocabulary: keys.size("vocab_size", MOST_TOKENS)?,
            hidden,
            layers,
            heads,
            kv_heads: heads,
            head_dim,
            intermediate: keys.optional_size("n_inner", MOST_WIDTH)?.unwrap_or(4 * hidden),
            context_length: keys.size("n_positions", MOST_POSITIONS)?,
            norm: NormKind::Layer,
            norm_epsilon: keys.epsilon("layer_norm_epsilon", 1e-5)?,
            embedding_scale: 1.0,
            ropes: Vec::new(),
            learned_positions: true,
            attention_scale: 1.0 / (head_dim as f32).sqrt(),
            score_cap: None,
            logit_cap: None,
            windows: vec![None; layers],
            activation: activation(keys.text("activation_function").unwrap_or("gelu_new"))?,
            qkv_bias: true,
            output_bias: true,
            mlp_bias: true,
            qk_norm: false,
            parallel_residual: false,
            tied: keys.flag("tie_word_embeddings", true)?,
        })
    }

    fn read_modern(keys: &ConfigKeys<'_>, family: Family) -> Result<Self, LoadError> {
        let hidden = keys.size("hidden_size", MOST_WIDTH)?;
        let heads = keys.size("num_attention_heads", MOST_HEADS)?;
        let layers = keys.size("num_hidden_layers", MOST_LAYERS)?;
        let kv_heads = match family {
            Family::GptNeox => heads,
            _ => keys.optional_size("num_key_value_heads", MOST_HEADS)?.unwrap_or(heads),
        };
        let head_dim = match keys.optional_size("head_dim", MOST_HEAD_WIDTH)? {
            Some(width) => width,
            None => hidden / heads,
        };
        let is_gemma = matches!(family, Family::Gemma2 | Family::Gemma3);
        let is_neox = family == Family::GptNeox;
        let scale_width = match keys.positive("query_pre_attn_scalar")? {
            Some(width) if is_gemma => width,
            _ => head_dim as f64,
        };
        let epsilon_key = if is_neox { "layer_norm_eps" } else { "rms_norm_eps" };
        let default_epsilon = if is_neox { 1e-5 } else { 1e-6 };
        let activation_key = if is_gemma { "hidden_activation" } else { "hidden_act" };
        let default_activation = match family {
            Family::GptNeox => "gelu",
            _ if is_gemma => "gelu_pytorch_tanh",
            _ => "silu",
        };
        let attention_bias = keys.flag("attention_bias", is_neox)?;
        let (score_cap, logit_cap) = if is_gemma {
            (keys.positive("attn_logit_softcapping")?, keys.positive("final_logit_softcapping")?)
        } else {
            (None, None)
        };
        Ok(Self {
            family,
            vocabulary: keys.size("vocab_size", MOST_TOKENS)?,
            hidden,
            layers,
            heads,
            kv_heads,
            head_dim,
            intermediate: keys.size("intermediate_size", MOST_WIDTH)?,
            context_length: context_length(keys)?,
            norm: match family {
                Family::GptNeox => NormKind::Layer,
                _ if is_gemma => NormKind::RmsOnePlus,
                _ => NormKind::Rms,
            },
            norm_epsilon: keys.epsilon(epsilon_key, default_epsilon)?,
            embedding_scale: if is_gemma { (hidden as f32).sqrt() } else { 1.0 },
            ropes: ropes(keys, family, layers, head_dim)?,
            learned_positions: false,
            attention_scale: (1.0 / scale_width.sqrt()) as f32,
            score_cap: score_cap.map(|cap| cap as f32),
            logit_cap: logit_cap.map(|cap| cap as f32),
            windows: windows(keys, family, layers)?,
            activation: activation(
                keys.text(activation_key)
                    .or_else(|| keys.text("hidden_act"))
                    .unwrap_or(default_activation),
            )?,
            qkv_bias: match family {
                Family::Qwen2 => true,
                _ => attention_bias,
            },
            output_bias: family != Family::Qwen2 && attention_bias,
            mlp_bias: is_neox || keys.flag("mlp_bias", false)?,
            qk_norm: matches!(family, Family::Qwen3 | Family::Gemma3),
            parallel_residual: is_neox && keys.flag("use_parallel_residual", true)?,
            tied: keys.flag("tie_word_embeddings", is_gemma)?,
        })
    }

    /// Sizes that must fit each other.
    fn check(&self) -> Result<(), LoadError> {
        if !self.heads.is_multiple_of(self.kv_heads) {
            return Err(ConfigKeys::error(format!(
                "{} query heads cannot share {} key heads evenly",
                self.heads, self.kv_heads
            )));
        }
        if self.head_dim == 0 {
            return Err(ConfigKeys::error(format!(
                "a hidden size of {} is too small for {} heads",
                self.hidden, self.heads
            )));
        }
        if self.head_dim > MOST_HEAD_WIDTH {
            return Err(ConfigKeys::error(format!(
                "heads of {} elements are wider than {MOST_HEAD_WIDTH}",
                self.head_dim
            )));
        }
        for rope in &self.ropes {
            if 2 * rope.frequencies.len() > self.head_dim {
                return Err(ConfigKeys::error("more elements turn than a head has".to_owned()));
            }
        }
        Ok(())
    }
}

fn activation(name: &str) -> Result<Activation, LoadError> {
    match name {
        "silu" | "swish" => Ok(Activation::Silu),
        "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Ok(Activation::GeluTanh),
        "gelu" => Ok(Activation::Gelu),
        _ => Err(ConfigKeys::error(format!(
            "activation {name:?} is not supported; hone knows silu, gelu, gelu_new and \
             gelu_pytorch_tanh"
        ))),
    }
}
