//! Writes GGUF files for tests as llama.cpp's converter does: its names, its keys, its changes of
//! layout, from a folder in Hugging Face layout.

use std::fs::File;
use std::io::BufWriter;
use std::path::Path;

use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor};
use serde_json::Value as Json;

/// Keys and values of a file.
pub type Keys = Vec<(String, Value)>;

/// Writes a file.
pub fn write(path: &Path, keys: &Keys, tensors: &[(String, QTensor)]) {
    let keys: Vec<(&str, &Value)> = keys.iter().map(|(key, value)| (key.as_str(), value)).collect();
    let tensors: Vec<(&str, &QTensor)> =
        tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    let mut file = BufWriter::new(File::create(path).unwrap());
    gguf_file::write(&mut file, &keys, &tensors).unwrap();
}

/// A tensor as it is.
pub fn plain(tensor: &Tensor) -> QTensor {
    QTensor::quantize(tensor, GgmlDType::F32).unwrap()
}

/// A text as a value.
pub fn text(text: &str) -> Value {
    Value::String(text.to_owned())
}

/// A byte-level tokenizer of `count` tokens: three control tokens, the bytes, one merge, and fillers.
pub fn byte_tokenizer(count: usize) -> Keys {
    let mut tokens: Vec<Value> = ["<pad>", "<s>", "</s>"].map(text).into();
    tokens.extend(byte_characters().map(|character| text(&character.to_string())));
    tokens.push(text("ab"));
    for filler in tokens.len()..count {
        tokens.push(text(&format!("[filler {filler}]")));
    }
    let kinds = (0..count).map(|id| Value::I32(if id < 3 { 3 } else { 1 })).collect();
    vec![
        ("tokenizer.ggml.model".to_owned(), text("gpt2")),
        ("tokenizer.ggml.pre".to_owned(), text("gpt-2")),
        ("tokenizer.ggml.tokens".to_owned(), Value::Array(tokens)),
        ("tokenizer.ggml.token_type".to_owned(), Value::Array(kinds)),
        ("tokenizer.ggml.merges".to_owned(), Value::Array(vec![text("a b")])),
        ("tokenizer.ggml.bos_token_id".to_owned(), Value::U32(1)),
        ("tokenizer.ggml.eos_token_id".to_owned(), Value::U32(2)),
    ]
}

/// The characters that byte-level tokenizers write bytes with.
fn byte_characters() -> impl Iterator<Item = char> {
    let is_printed = |byte: u32| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let printed = (0..256).filter(move |byte| is_printed(*byte));
    let others = (0..256).filter(move |byte| !is_printed(*byte)).enumerate();
    printed.chain(others.map(|(index, _)| 256 + index as u32)).filter_map(char::from_u32)
}

/// One architecture's names: Hugging Face's part of a name, and llama.cpp's.
type Names = &'static [(&'static str, &'static str)];

const LLAMA_NAMES: Names = &[
    ("model.embed_tokens", "token_embd"),
    ("model.norm", "output_norm"),
    ("lm_head", "output"),
    ("model.layers.", "blk."),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.qkv_proj", "attn_qkv"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("mlp.gate_up_proj", "ffn_up"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
    ("input_layernorm", "attn_norm"),
];
const PLAIN_NORMS: Names = &[("post_attention_layernorm", "ffn_norm")];
const GEMMA_NORMS: Names = &[
    ("pre_feedforward_layernorm", "ffn_norm"),
    ("post_feedforward_layernorm", "post_ffw_norm"),
    ("post_attention_layernorm", "post_attention_norm"),
];
const GPT2_NAMES: Names = &[
    ("transformer.wte", "token_embd"),
    ("transformer.wpe", "position_embd"),
    ("transformer.ln_f", "output_norm"),
    ("transformer.h.", "blk."),
    ("ln_1", "attn_norm"),
    ("ln_2", "ffn_norm"),
    ("attn.c_attn", "attn_qkv"),
    ("attn.c_proj", "attn_output"),
    ("mlp.c_fc", "ffn_up"),
    ("mlp.c_proj", "ffn_down"),
];
const NEOX_NAMES: Names = &[
    ("gpt_neox.embed_in", "token_embd"),
    ("gpt_neox.final_layer_norm", "output_norm"),
    ("embed_out", "output"),
    ("gpt_neox.layers.", "blk."),
    ("input_layernorm", "attn_norm"),
    ("post_attention_layernorm", "ffn_norm"),
    ("attention.query_key_value", "attn_qkv"),
    ("attention.dense", "attn_output"),
    ("mlp.dense_h_to_4h", "ffn_up"),
    ("mlp.dense_4h_to_h", "ffn_down"),
];

fn names(model_type: &str) -> [Names; 2] {
    match model_type {
        "gpt2" => [GPT2_NAMES, &[]],
        "gpt_neox" => [NEOX_NAMES, &[]],
        "gemma2" | "gemma3_text" => [LLAMA_NAMES, GEMMA_NORMS],
        _ => [LLAMA_NAMES, PLAIN_NORMS],
    }
}

/// llama.cpp's name of an architecture.
fn architecture(model_type: &str) -> &str {
    match model_type {
        "mistral" => "llama",
        "gemma3_text" => "gemma3",
        "gpt_neox" => "gptneox",
        other => other,
    }
}

/// Converts the folder's weights and configuration; a tokenizer of bytes beside them.
pub fn convert(folder: &Path, config: &Json) -> (Keys, Vec<(String, QTensor)>) {
    let model_type = config["model_type"].as_str().unwrap();
    let weights = candle_core::safetensors::load(folder.join("model.safetensors"), &Device::Cpu);
    let mut tensors = Vec::new();
    let mut stored: Vec<(String, Tensor)> = weights.unwrap().into_iter().collect();
    stored.sort_by(|a, b| a.0.cmp(&b.0));
    for (name, tensor) in stored {
        let changed = change(model_type, config, &name, &tensor.to_dtype(DType::F32).unwrap());
        let mut written = name.clone();
        for (from, to) in names(model_type).into_iter().flatten() {
            written = written.replace(from, to);
        }
        tensors.push((written, plain(&changed)));
    }
    if let Some(factors) = llama3_factors(config) {
        let factors = Tensor::new(factors, &Device::Cpu).unwrap();
        tensors.push(("rope_freqs.weight".to_owned(), plain(&factors)));
    }
    for (list, name) in [("short_factor", "short"), ("long_factor", "long")] {
        if let Some(factors) = config["rope_parameters"][list].as_array() {
            let factors: Vec<f32> =
                factors.iter().map(|factor| factor.as_f64().unwrap() as f32).collect();
            let factors = Tensor::new(factors, &Device::Cpu).unwrap();
            tensors.push((format!("rope_factors_{name}.weight"), plain(&factors)));
        }
    }
    let mut keys = configuration(model_type, config);
    keys.extend(byte_tokenizer(config["vocab_size"].as_u64().unwrap() as usize));
    (keys, tensors)
}

fn change(model_type: &str, config: &Json, name: &str, tensor: &Tensor) -> Tensor {
    let size = |key: &str| config[key].as_u64().map(|size| size as usize);
    let heads = size("num_attention_heads").or(size("n_head")).unwrap();
    match model_type {
        "llama" | "mistral" if name.contains("q_proj") => interleave(tensor, heads),
        "llama" | "mistral" if name.contains("k_proj") => {
            interleave(tensor, size("num_key_value_heads").unwrap())
        }
        "gemma2" | "gemma3_text" if name.ends_with("norm.weight") => (tensor + 1.0).unwrap(),
        "gpt2" if name.contains(".c_") && name.ends_with("weight") => {
            tensor.t().unwrap().contiguous().unwrap()
        }
        "gpt_neox" if name.contains("query_key_value") => {
            let rows = tensor.dim(0).unwrap();
            let split = tensor.reshape((heads, 3, rows / 3 / heads, ())).unwrap();
            let split = split.transpose(0, 1).unwrap().contiguous().unwrap();
            split.reshape(tensor.shape()).unwrap()
        }
        _ => tensor.clone(),
    }
}

/// Rows for interleaved rotation.
fn interleave(tensor: &Tensor, heads: usize) -> Tensor {
    let rows = tensor.dim(0).unwrap();
    let split = tensor.reshape((heads, 2, rows / heads / 2, ())).unwrap();
    let split = split.transpose(1, 2).unwrap().contiguous().unwrap();
    split.reshape(tensor.shape()).unwrap()
}

/// The divisors of Llama 3's rule.
fn llama3_factors(config: &Json) -> Option<Vec<f32>> {
    let rope = &config["rope_parameters"];
    if rope["rope_type"] != "llama3" {
        return None;
    }
    let number = |key: &str| rope[key].as_f64().unwrap();
    let (low, high) = (number("low_freq_factor"), number("high_freq_factor"));
    let (factor, original) = (number("factor"), number("original_max_position_embeddings"));
    let width = config["head_dim"].as_f64().unwrap();
    let mut factors = Vec::new();
    for pair in 0..(width / 2.0) as usize {
        let frequency = number("rope_theta").powf(-2.0 * pair as f64 / width);
        let wave = 2.0 * std::f64::consts::PI / frequency;
        factors.push(if wave < original / high {
            1.0
        } else if wave > original / low {
            factor as f32
        } else {
            let smooth = (original / wave - low) / (high - low);
            (1.0 / ((1.0 - smooth) / factor + smooth)) as f32
        });
    }
    Some(factors)
}

fn configuration(model_type: &str, config: &Json) -> Keys {
    let name = architecture(model_type);
    let mut keys: Keys = vec![("general.architecture".to_owned(), text(name))];
    let mut set = |key: &str, value: Value| keys.push((format!("{name}.{key}"), value));
    let whole = |key: &str| config[key].as_u64().map(|size| Value::U32(size as u32));
    let float = |value: &Json| value.as_f64().map(|number| Value::F32(number as f32));
    let pick = |one: &str, other: &str| whole(one).or_else(|| whole(other)).unwrap();

    set("context_length", pick("max_position_embeddings", "n_positions"));
    set("embedding_length", pick("hidden_size", "n_embd"));
    set("block_count", pick("num_hidden_layers", "n_layer"));
    set("feed_forward_length", pick("intermediate_size", "n_inner"));
    set("attention.head_count", pick("num_attention_heads", "n_head"));
    if let Some(heads) = whole("num_key_value_heads") {
        set("attention.head_count_kv", heads);
    }
    if let Some(width) = whole("head_dim") {
        set("attention.key_length", width.clone());
        set("attention.value_length", width);
    }
    for (from, to) in [
        ("rms_norm_eps", "attention.layer_norm_rms_epsilon"),
        ("layer_norm_eps", "attention.layer_norm_epsilon"),
        ("layer_norm_epsilon", "attention.layer_norm_epsilon"),
        ("attn_logit_softcapping", "attn_logit_softcapping"),
        ("final_logit_softcapping", "final_logit_softcapping"),
    ] {
        if let Some(number) = float(&config[from]) {
            set(to, number);
        }
    }
    match model_type {
        "gemma2" | "gemma3_text" => {
            set("attention.sliding_window", whole("sliding_window").unwrap())
        }
        "phi3" => set("attention.sliding_window", Value::U32(0)),
        "gpt_neox" => set("use_parallel_residual", Value::Bool(true)),
        _ => {}
    }
    let rope = &config["rope_parameters"];
    let full = rope.get("full_attention").unwrap_or(rope);
    // The converter of GPT-NeoX leaves it out.
    if let (Some(theta), true) = (float(&full["rope_theta"]), model_type != "gpt_neox") {
        set("rope.freq_base", theta);
    }
    if rope["rope_type"] == "longrope" {
        let original = rope["original_max_position_embeddings"].as_f64().unwrap();
        let stretch = config["max_position_embeddings"].as_f64().unwrap() / original;
        let factor = (1.0 + stretch.ln() / original.ln()).sqrt();
        set("rope.scaling.attn_factor", Value::F32(factor as f32));
        set("rope.scaling.original_context_length", Value::U32(original as u32));
    }
    if let Some(share) = rope["partial_rotary_factor"].as_f64() {
        let width = config["hidden_size"].as_f64().unwrap()
            / config["num_attention_heads"].as_f64().unwrap();
        set("rope.dimension_count", Value::U32((share * width) as u32));
    }
    keys
}
