//! Names of tensors in Hugging Face's checkpoints, one table for each family of architectures.

use std::ops::Range;

use crate::train::model::config::{Family, ModelConfig};

/// The layout of a linear layer's weight in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LinearLayout {
    /// `[outputs, inputs]`.
    Linear,
    /// `[inputs, outputs]`, GPT-2's `Conv1D`.
    Conv1d,
}

/// One linear layer of a decoder layer: its module path and shape.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct LinearName {
    pub module: String,
    pub outputs: usize,
    pub inputs: usize,
    pub has_bias: bool,
    pub layout: LinearLayout,
}

/// The projections to queries, keys and values.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum QkvNames {
    Separate([LinearName; 3]),
    /// One layer; the columns of queries, keys and values in its output.
    Fused(LinearName, [Vec<Range<usize>>; 3]),
}

/// The layers of the MLP.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum MlpNames {
    Gated { gate: LinearName, up: LinearName, down: LinearName },
    FusedGated { gate_up: LinearName, down: LinearName },
    Plain { up: LinearName, down: LinearName },
}

/// The tensors of one decoder layer.
pub(super) struct LayerNames {
    pub qkv: QkvNames,
    pub output: LinearName,
    pub mlp: MlpNames,
    /// Before attention.
    pub attention_norm: String,
    /// Before the MLP.
    pub mlp_norm: String,
    /// After attention and after the MLP, before they join the residual stream (Gemma).
    pub post_norms: Option<[String; 2]>,
    /// Of each head's q and k.
    pub qk_norms: Option<[String; 2]>,
}

/// Tensors outside of the layers.
pub(super) struct OuterTensorNames {
    pub embedding: &'static str,
    pub positions: Option<&'static str>,
    pub final_norm: &'static str,
    pub head: &'static str,
}

pub(super) fn outer(family: Family) -> OuterTensorNames {
    match family {
        Family::Gpt2 => OuterTensorNames {
            embedding: "transformer.wte",
            positions: Some("transformer.wpe"),
            final_norm: "transformer.ln_f",
            head: "lm_head",
        },
        Family::GptNeox => OuterTensorNames {
            embedding: "gpt_neox.embed_in",
            positions: None,
            final_norm: "gpt_neox.final_layer_norm",
            head: "embed_out",
        },
        _ => OuterTensorNames {
            embedding: "model.embed_tokens",
            positions: None,
            final_norm: "model.norm",
            head: "lm_head",
        },
    }
}

pub(super) fn layer(config: &ModelConfig, index: usize) -> LayerNames {
    match config.family {
        Family::Gpt2 => gpt2(config, index),
        Family::GptNeox => gpt_neox(config, index),
        _ => llama_like(config, index),
    }
}

fn llama_like(config: &ModelConfig, layer: usize) -> LayerNames {
    let prefix = format!("model.layers.{layer}");
    let linear = |module: &str, outputs: usize, inputs: usize, has_bias: bool| LinearName {
        module: format!("{prefix}.{module}"),
        outputs,
        inputs,
        has_bias,
        layout: LinearLayout::Linear,
    };
    let (hidden, width) = (config.hidden, config.intermediate);
    let query_width = config.heads * config.head_dim;
    let kv_width = config.kv_heads * config.head_dim;
    let is_phi = config.family == Family::Phi3;
    let has_post_norms = config.has_post_norms();

    let qkv = if is_phi {
        let all = query_width + 2 * kv_width;
        let key_start = query_width;
        let value_start = query_width + kv_width;
        let fused = linear("self_attn.qkv_proj", all, hidden, config.qkv_bias);
        let columns = [one(0..key_start), one(key_start..value_start), one(value_start..all)];
        QkvNames::Fused(fused, columns)
    } else {
        QkvNames::Separate([
            linear("self_attn.q_proj", query_width, hidden, config.qkv_bias),
            linear("self_attn.k_proj", kv_width, hidden, config.qkv_bias),
            linear("self_attn.v_proj", kv_width, hidden, config.qkv_bias),
        ])
    };
    let down = linear("mlp.down_proj", hidden, width, config.mlp_bias);
    let mlp = if is_phi {
        let gate_up = linear("mlp.gate_up_proj", 2 * width, hidden, config.mlp_bias);
        MlpNames::FusedGated { gate_up, down }
    } else {
        MlpNames::Gated {
            gate: linear("mlp.gate_proj", width, hidden, config.mlp_bias),
            up: linear("mlp.up_proj", width, hidden, config.mlp_bias),
            down,
        }
    };
    let name = |norm: &str| format!("{prefix}.{norm}");
    LayerNames {
        qkv,
        output: linear("self_attn.o_proj", hidden, query_width, config.output_bias),
        mlp,
        attention_norm: name("input_layernorm"),
        mlp_norm: if has_post_norms {
            name("pre_feedforward_layernorm")
        } else {
            name("post_attention_layernorm")
        },
        post_norms: has_post_norms
            .then(|| [name("post_attention_layernorm"), name("post_feedforward_layernorm")]),
        qk_norms: config.qk_norm.then(|| [name("self_attn.q_norm"), name("self_attn.k_norm")]),
    }
}

fn gpt2(config: &ModelConfig, layer: usize) -> LayerNames {
    let prefix = format!("transformer.h.{layer}");
    let conv = |module: &str, outputs: usize, inputs: usize| LinearName {
        module: format!("{prefix}.{module}"),
        outputs,
        inputs,
        has_bias: true,
        layout: LinearLayout::Conv1d,
    };
    let hidden = config.hidden;
    let columns = [one(0..hidden), one(hidden..2 * hidden), one(2 * hidden..3 * hidden)];
    LayerNames {
        qkv: QkvNames::Fused(conv("attn.c_attn", 3 * hidden, hidden), columns),
        output: conv("attn.c_proj", hidden, hidden),
        mlp: MlpNames::Plain {
            up: conv("mlp.c_fc", config.intermediate, hidden),
            down: conv("mlp.c_proj", hidden, config.intermediate),
        },
        attention_norm: format!("{prefix}.ln_1"),
        mlp_norm: format!("{prefix}.ln_2"),
        post_norms: None,
        qk_norms: None,
    }
}

/// GPT-NeoX interleaves by head: q, k and v of head 0, then those of head 1, and so on.
fn gpt_neox(config: &ModelConfig, layer: usize) -> LayerNames {
    let prefix = format!("gpt_neox.layers.{layer}");
    let linear = |module: &str, outputs: usize, inputs: usize, has_bias: bool| LinearName {
        module: format!("{prefix}.{module}"),
        outputs,
        inputs,
        has_bias,
        layout: LinearLayout::Linear,
    };
    let (hidden, width) = (config.hidden, config.head_dim);
    let columns = [0, 1, 2].map(|part| {
        (0..config.heads)
            .map(|head| {
                let start = (head * 3 + part) * width;
                start..start + width
            })
            .collect()
    });
    let fused =
        linear("attention.query_key_value", 3 * config.heads * width, hidden, config.qkv_bias);
    LayerNames {
        qkv: QkvNames::Fused(fused, columns),
        output: linear("attention.dense", hidden, config.heads * width, config.output_bias),
        mlp: MlpNames::Plain {
            up: linear("mlp.dense_h_to_4h", config.intermediate, hidden, config.mlp_bias),
            down: linear("mlp.dense_4h_to_h", hidden, config.intermediate, config.mlp_bias),
        },
        attention_norm: format!("{prefix}.input_layernorm"),
        mlp_norm: format!("{prefix}.post_attention_layernorm"),
        post_norms: None,
        qk_norms: None,
    }
}

/// One range of columns.
fn one(range: Range<usize>) -> Vec<Range<usize>> {
    vec![range]
}
