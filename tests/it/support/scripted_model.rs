//! A model that answers what a test wants, token by token: real weights, under which the last token
//! alone decides the next one. Nothing in hone knows of it.

use std::fs;
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

/// A token of the answer. No token may come twice.
#[derive(Debug, Clone, Copy)]
pub enum Token<'a> {
    /// One byte, which need not be a character.
    Byte(u8),
    /// A text that is one token.
    Text(&'a str),
    /// A control token.
    Control(&'a str),
    /// A text after which the model computes nothing but NaN.
    Broken(&'a str),
}

/// How many tokens there are before those of an answer.
pub const BASE: usize = 292;

/// Its token that ends a turn.
pub const END: usize = 2;

/// Width of the model, one direction for each token.
const WIDTH: usize = 384;

/// Writes a model `name` into the folder `models`. Whatever it reads, it goes on with `answer` and
/// ends its turn; without a template in its chat, unless one is given.
pub fn write(models: &Path, name: &str, template: Option<&str>, answer: &[Token<'_>]) {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tiny-llama");
    let to = models.join(name);
    fs::create_dir_all(&to).expect("a folder");
    let read = |file: &str| -> Value {
        let text = fs::read_to_string(from.join(file)).expect("there");
        serde_json::from_str(&text).expect("JSON")
    };
    let mut tokenizer = read("tokenizer.json");
    let known = tokenizer["model"]["vocab"].as_object().expect("a vocabulary").len();
    assert_eq!(known, BASE, "of the tiny model");
    let mut ids = Vec::new();
    let mut broken = None;
    let mut size = BASE;
    for token in answer {
        let (content, is_control) = match token {
            Token::Byte(byte) => {
                let spelt = spelling(*byte).to_string();
                let id = tokenizer["model"]["vocab"][&spelt].as_u64().expect("a byte's token");
                ids.push(id as usize);
                continue;
            }
            Token::Text(text) | Token::Broken(text) => (text, false),
            Token::Control(text) => (text, true),
        };
        let added = tokenizer["added_tokens"].as_array_mut().expect("a list");
        added.push(json!({"id": size, "content": content, "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": is_control}));
        if matches!(token, Token::Broken(_)) {
            broken = Some(size);
        }
        ids.push(size);
        size += 1;
    }
    assert!(size <= WIDTH, "too many tokens");
    let mut config = read("config.json");
    for (key, value) in [
        ("hidden_size", json!(WIDTH)),
        ("vocab_size", json!(size)),
        ("num_hidden_layers", json!(1)),
        ("max_position_embeddings", json!(2048)),
        ("tie_word_embeddings", json!(false)),
    ] {
        config[key] = value;
    }
    let mut settings = read("tokenizer_config.json");
    match template {
        Some(template) => settings["chat_template"] = json!(template),
        None => {
            settings.as_object_mut().expect("an object").remove("chat_template");
        }
    }
    for (file, value) in [
        ("tokenizer.json", tokenizer),
        ("config.json", config),
        ("tokenizer_config.json", settings),
    ] {
        fs::write(to.join(file), value.to_string()).expect("written");
    }
    write_weights(&to, size, &ids, broken);
}

/// Blocks that add nothing between an embedding of a direction for each token and a head that reads
/// off the next one.
fn write_weights(to: &Path, size: usize, answer: &[usize], broken: Option<usize>) {
    let mut next = vec![answer.first().copied().unwrap_or(END); size];
    for (place, id) in answer.iter().enumerate() {
        next[*id] = answer.get(place + 1).copied().unwrap_or(END);
    }
    let mut embedding = vec![0.0f32; size * WIDTH];
    let mut head = vec![0.0f32; size * WIDTH];
    for token in 0..size {
        embedding[token * WIDTH + token] = if broken == Some(token) { f32::NAN } else { 1.0 };
        head[next[token] * WIDTH + token] = 1.0;
    }
    let (queries, keys, inner) = (64, 32, 112);
    let block = "model.layers.0";
    let tensors = [
        ("model.embed_tokens".to_owned(), vec![size, WIDTH], embedding),
        ("lm_head".to_owned(), vec![size, WIDTH], head),
        ("model.norm".to_owned(), vec![WIDTH], vec![1.0; WIDTH]),
        (format!("{block}.input_layernorm"), vec![WIDTH], vec![1.0; WIDTH]),
        (format!("{block}.post_attention_layernorm"), vec![WIDTH], vec![1.0; WIDTH]),
        (format!("{block}.self_attn.q_proj"), vec![queries, WIDTH], vec![0.0; queries * WIDTH]),
        (format!("{block}.self_attn.k_proj"), vec![keys, WIDTH], vec![0.0; keys * WIDTH]),
        (format!("{block}.self_attn.v_proj"), vec![keys, WIDTH], vec![0.0; keys * WIDTH]),
        (format!("{block}.self_attn.o_proj"), vec![WIDTH, queries], vec![0.0; queries * WIDTH]),
        (format!("{block}.mlp.gate_proj"), vec![inner, WIDTH], vec![0.0; inner * WIDTH]),
        (format!("{block}.mlp.up_proj"), vec![inner, WIDTH], vec![0.0; inner * WIDTH]),
        (format!("{block}.mlp.down_proj"), vec![WIDTH, inner], vec![0.0; inner * WIDTH]),
    ];
    let bytes: Vec<(String, Vec<usize>, Vec<u8>)> = tensors
        .into_iter()
        .map(|(name, shape, values)| {
            let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            (format!("{name}.weight"), shape, bytes)
        })
        .collect();
    let views = bytes.iter().map(|(name, shape, bytes)| {
        (name.as_str(), TensorView::new(Dtype::F32, shape.clone(), bytes).expect("its size"))
    });
    safetensors::serialize_to_file(views, None, &to.join("model.safetensors")).expect("written");
}

/// The character by which GPT-2's tokenizers write a byte.
fn spelling(byte: u8) -> char {
    let is_printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if is_printable(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|byte| !is_printable(*byte)).count() as u32;
    char::from_u32(0x100 + before).expect("a character")
}
