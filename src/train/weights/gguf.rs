//! A base model in one `.gguf` file: weights, configuration, tokenizer and template.
//!
//! llama.cpp's names and layouts are translated to Hugging Face's: rows of q and k come back from
//! the order of interleaved rotation, quantised blocks become floats tensor by tensor.

use std::collections::HashMap;
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use candle_core::Device;
use candle_core::quantized::gguf_file::{Content, Value};

use super::{HostTensor, LoadError, TensorData, WeightSource};
use crate::train::tokenizer::{SpecialIds, byte_level_bpe};

/// What one file holds.
pub struct Gguf {
    /// The configuration as `config.json` would have it.
    pub config: serde_json::Value,
    /// The weights.
    pub weights: Box<dyn WeightSource>,
    /// The tokenizer as `tokenizer.json` would have it.
    pub tokenizer_json: Vec<u8>,
    /// What the file says of special tokens.
    pub special: SpecialIds,
    /// The chat template.
    pub template: Option<String>,
}

/// Marks a control token in `tokenizer.ggml.token_type`.
const CONTROL: i64 = 3;

/// Opens a file: reads the header; weights stay on disk until they are asked for.
///
/// # Errors
/// A file that is damaged, or of an architecture or tokenizer that hone does not read from GGUF.
pub fn open(path: &Path) -> Result<Gguf, LoadError> {
    let malformed =
        |reason: String| LoadError::Malformed { path: path.display().to_string(), reason };
    let file = File::open(path)
        .map_err(|source| LoadError::Io { path: path.display().to_string(), source })?;
    let content = Content::read(&mut BufReader::new(file))
        .map_err(|error| malformed(format!("not a GGUF file, or damaged: {error}")))?;
    let metadata = Metadata { values: &content.metadata, path };
    let architecture = metadata.text("general.architecture")?;
    if architecture != "llama" {
        return Err(LoadError::UnknownArchitecture {
            found: format!("{architecture} (in a GGUF file)"),
            known: "llama in GGUF files, and more as Hugging Face folders".to_owned(),
        });
    }
    let is_tied = !content.tensor_infos.contains_key("output.weight");
    let config = configuration(&metadata, is_tied)?;
    let heads = [metadata.size("llama.attention.head_count")?, {
        metadata.size("llama.attention.head_count_kv")?
    }];
    let mut names = HashMap::new();
    for stored in content.tensor_infos.keys() {
        let name = hugging_face_name(stored)
            .ok_or_else(|| malformed(format!("tensor {stored:?} is not known")))?;
        names.insert(name, stored.clone());
    }
    let (tokenizer_json, special) = tokenizer(&metadata)?;
    let template = match content.metadata.get("tokenizer.chat_template") {
        Some(Value::String(text)) => Some(text.clone()),
        _ => None,
    };
    let weights = Box::new(GgufWeights { path: path.to_owned(), names, heads, content });
    Ok(Gguf { config, weights, tokenizer_json, special, template })
}

/// Reads keys, with errors that name them.
struct Metadata<'a> {
    values: &'a HashMap<String, Value>,
    path: &'a Path,
}

impl Metadata<'_> {
    fn error(&self, key: &str, what: &str) -> LoadError {
        LoadError::Malformed {
            path: self.path.display().to_string(),
            reason: format!("the key {key:?} {what}"),
        }
    }

    fn get(&self, key: &str) -> Result<&Value, LoadError> {
        self.values.get(key).ok_or_else(|| self.error(key, "is missing"))
    }

    fn text(&self, key: &str) -> Result<&str, LoadError> {
        match self.get(key)? {
            Value::String(text) => Ok(text),
            _ => Err(self.error(key, "is not a text")),
        }
    }

    fn whole(&self, key: &str) -> Option<i64> {
        self.values.get(key).and_then(whole)
    }

    fn size(&self, key: &str) -> Result<usize, LoadError> {
        let value = self.get(key)?;
        let size = whole(value).and_then(|size| usize::try_from(size).ok());
        size.filter(|size| *size > 0).ok_or_else(|| self.error(key, "is not a positive number"))
    }

    fn number(&self, key: &str) -> Result<f64, LoadError> {
        match self.get(key)? {
            Value::F32(number) => Ok(f64::from(*number)),
            Value::F64(number) => Ok(*number),
            _ => Err(self.error(key, "is not a number")),
        }
    }

    fn list(&self, key: &str) -> Result<&[Value], LoadError> {
        match self.get(key)? {
            Value::Array(list) => Ok(list),
            _ => Err(self.error(key, "is not a list")),
        }
    }

    fn texts(&self, key: &str) -> Result<Vec<String>, LoadError> {
        let mut texts = Vec::new();
        for value in self.list(key)? {
            match value {
                Value::String(text) => texts.push(text.clone()),
                _ => return Err(self.error(key, "is not a list of texts")),
            }
        }
        Ok(texts)
    }
}

fn whole(value: &Value) -> Option<i64> {
    match value {
        Value::U8(n) => Some(i64::from(*n)),
        Value::I8(n) => Some(i64::from(*n)),
        Value::U16(n) => Some(i64::from(*n)),
        Value::I16(n) => Some(i64::from(*n)),
        Value::U32(n) => Some(i64::from(*n)),
        Value::I32(n) => Some(i64::from(*n)),
        Value::U64(n) => i64::try_from(*n).ok(),
        Value::I64(n) => Some(*n),
        _ => None,
    }
}

/// The file's metadata as a `config.json`.
fn configuration(metadata: &Metadata<'_>, is_tied: bool) -> Result<serde_json::Value, LoadError> {
    let hidden = metadata.size("llama.embedding_length")?;
    let heads = metadata.size("llama.attention.head_count")?;
    let head_dim = match metadata.whole("llama.attention.key_length") {
        Some(width) => width as usize,
        None => hidden / heads,
    };
    let scaling = metadata.values.get("llama.rope.scaling.type");
    if let Some(Value::String(kind)) = scaling
        && kind != "none"
    {
        return Err(metadata.error(
            "llama.rope.scaling.type",
            "names a scaling that hone reads from Hugging Face folders only",
        ));
    }
    Ok(serde_json::json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": metadata.list("tokenizer.ggml.tokens")?.len(),
        "hidden_size": hidden,
        "intermediate_size": metadata.size("llama.feed_forward_length")?,
        "num_hidden_layers": metadata.size("llama.block_count")?,
        "num_attention_heads": heads,
        "num_key_value_heads": metadata.size("llama.attention.head_count_kv")?,
        "head_dim": head_dim,
        "max_position_embeddings": metadata.size("llama.context_length")?,
        "rms_norm_eps": metadata.number("llama.attention.layer_norm_rms_epsilon")?,
        "rope_theta": metadata.number("llama.rope.freq_base").unwrap_or(10_000.0),
        "hidden_act": "silu",
        "attention_bias": false,
        "mlp_bias": false,
        "tie_word_embeddings": is_tied,
        "bos_token_id": metadata.whole("tokenizer.ggml.bos_token_id"),
        "eos_token_id": metadata.whole("tokenizer.ggml.eos_token_id"),
    }))
}

fn tokenizer(metadata: &Metadata<'_>) -> Result<(Vec<u8>, SpecialIds), LoadError> {
    let model = metadata.text("tokenizer.ggml.model")?;
    if model != "gpt2" {
        return Err(metadata.error(
            "tokenizer.ggml.model",
            "is not \"gpt2\", the byte-level kind that hone reads from GGUF: use the model's Hugging \
             Face folder",
        ));
    }
    let tokens = metadata.texts("tokenizer.ggml.tokens")?;
    let merges = metadata.texts("tokenizer.ggml.merges")?;
    let kinds = metadata.list("tokenizer.ggml.token_type")?;
    let control: Vec<u32> = kinds
        .iter()
        .enumerate()
        .filter(|(_, kind)| whole(kind) == Some(CONTROL))
        .map(|(id, _)| id as u32)
        .collect();
    let pre = match metadata.values.get("tokenizer.ggml.pre") {
        Some(Value::String(pre)) => pre.as_str(),
        _ => "default",
    };
    let json = byte_level_bpe(&tokens, &merges, &control, pre)
        .map_err(|error| metadata.error("tokenizer.ggml", &format!("cannot be used: {error}")))?;
    let id = |key: &str| metadata.whole(key).and_then(|id| u32::try_from(id).ok());
    let adds = metadata.values.get("tokenizer.ggml.add_bos_token");
    let special = SpecialIds {
        beginning: id("tokenizer.ggml.bos_token_id"),
        ends: id("tokenizer.ggml.eos_token_id").into_iter().collect(),
        adds_beginning: matches!(adds, Some(Value::Bool(true))),
    };
    Ok((json, special))
}

/// llama.cpp's name of a llama tensor as Hugging Face's.
fn hugging_face_name(stored: &str) -> Option<String> {
    match stored {
        "token_embd.weight" => return Some("model.embed_tokens.weight".to_owned()),
        "output_norm.weight" => return Some("model.norm.weight".to_owned()),
        "output.weight" => return Some("lm_head.weight".to_owned()),
        _ => {}
    }
    let (layer, part) = stored.strip_prefix("blk.")?.split_once('.')?;
    let layer: usize = layer.parse().ok()?;
    let part = match part {
        "attn_norm.weight" => "input_layernorm.weight",
        "ffn_norm.weight" => "post_attention_layernorm.weight",
        "attn_q.weight" => "self_attn.q_proj.weight",
        "attn_k.weight" => "self_attn.k_proj.weight",
        "attn_v.weight" => "self_attn.v_proj.weight",
        "attn_output.weight" => "self_attn.o_proj.weight",
        "ffn_gate.weight" => "mlp.gate_proj.weight",
        "ffn_up.weight" => "mlp.up_proj.weight",
        "ffn_down.weight" => "mlp.down_proj.weight",
        _ => return None,
    };
    Some(format!("model.layers.{layer}.{part}"))
}

struct GgufWeights {
    path: PathBuf,
    content: Content,
    /// Hugging Face's name to the file's.
    names: HashMap<String, String>,
    /// Query heads, key heads.
    heads: [usize; 2],
}

impl WeightSource for GgufWeights {
    fn shapes(&self) -> Vec<(String, Vec<usize>)> {
        let shape = |stored: &String| {
            self.content
                .tensor_infos
                .get(stored)
                .map(|info| info.shape.dims().to_vec())
                .unwrap_or_default()
        };
        self.names.iter().map(|(name, stored)| (name.clone(), shape(stored))).collect()
    }

    fn tensor(&self, name: &str) -> Result<HostTensor, LoadError> {
        let Some(stored) = self.names.get(name) else {
            return Err(LoadError::Tensors(format!("{name:?} is missing")));
        };
        let file = File::open(&self.path)
            .map_err(|source| LoadError::Io { path: self.path.display().to_string(), source })?;
        let read = || -> candle_core::Result<(Vec<usize>, Vec<f32>)> {
            let tensor = self.content.tensor(&mut BufReader::new(file), stored, &Device::Cpu)?;
            let tensor = tensor.dequantize(&Device::Cpu)?;
            Ok((tensor.dims().to_vec(), tensor.flatten_all()?.to_vec1()?))
        };
        let (shape, mut values) = read().map_err(|error| LoadError::Malformed {
            path: self.path.display().to_string(),
            reason: format!("tensor {stored:?}: {error}"),
        })?;
        if name.ends_with("q_proj.weight") {
            values = unpermuted(&values, self.heads[0], &shape);
        } else if name.ends_with("k_proj.weight") {
            values = unpermuted(&values, self.heads[1], &shape);
        }
        Ok(HostTensor { shape, data: TensorData::F32(values) })
    }
}

/// Rows of q or k from the order of interleaved rotation (pairs side by side) to that of halves.
fn unpermuted(values: &[f32], heads: usize, shape: &[usize]) -> Vec<f32> {
    let &[rows, columns] = shape else {
        return values.to_vec();
    };
    let head_dim = rows / heads;
    let half = head_dim / 2;
    let mut out = Vec::with_capacity(values.len());
    for row in 0..rows {
        let (head, place) = (row / head_dim, row % head_dim);
        let from = head * head_dim + place % half * 2 + place / half;
        out.extend_from_slice(&values[from * columns..][..columns]);
    }
    out
}
