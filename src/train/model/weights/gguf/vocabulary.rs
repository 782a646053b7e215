//! The tokenizer of a GGUF file as a `tokenizer.json`: the file keeps lists of tokens, of merges or
//! scores, and the name of a rule for words; the `tokenizers` library wants it all spelt out.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::metadata::Metadata;
use super::pre_tokenizer;
use crate::train::model::error::LoadError;
use crate::train::model::tokenizer::SpecialIds;

/// What `tokenizer.ggml.token_type` says of a token.
const NORMAL: i64 = 1;
const UNKNOWN: i64 = 2;
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;

/// The character that stands for a space in SentencePiece's vocabularies.
const SPACE: &str = "▁";

/// The `tokenizer.json`, and the special tokens.
pub(super) fn read(metadata: &Metadata<'_>) -> Result<(Vec<u8>, SpecialIds), LoadError> {
    let model = metadata.text("tokenizer.ggml.model")?;
    let tokens = metadata.texts("tokenizer.ggml.tokens")?;
    let kinds = metadata.wholes("tokenizer.ggml.token_type")?;
    if kinds.len() != tokens.len() {
        let what = format!("has {} entries for {} tokens", kinds.len(), tokens.len());
        return Err(metadata.error("tokenizer.ggml.token_type", &what));
    }
    let pre = metadata.optional_text("tokenizer.ggml.pre")?.unwrap_or("default");
    let is_sentence_piece = model == "llama";
    let json = match model {
        "gpt2" => {
            let merges = metadata.texts("tokenizer.ggml.merges")?;
            byte_level_bpe(&tokens, &merges, &kinds, pre)
                .map_err(|reason| metadata.error("tokenizer.ggml.pre", &reason))?
        }
        "llama" => {
            let scores = metadata.floats("tokenizer.ggml.scores")?;
            if scores.len() != tokens.len() {
                let what = format!("has {} entries for {} tokens", scores.len(), tokens.len());
                return Err(metadata.error("tokenizer.ggml.scores", &what));
            }
            let prefix = metadata.optional_flag("tokenizer.ggml.add_space_prefix")?;
            sentence_piece_bpe(&tokens, &scores, &kinds, prefix.unwrap_or(true))
        }
        _ => {
            let what = format!(
                "is {model:?}; hone reads \"gpt2\" (byte-level) and \"llama\" (SentencePiece) from \
                 GGUF files: use the model's Hugging Face folder"
            );
            return Err(metadata.error("tokenizer.ggml.model", &what));
        }
    };
    let adds = metadata.optional_flag("tokenizer.ggml.add_bos_token")?;
    let mut ends = Vec::new();
    for key in ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"] {
        ends.extend(metadata.optional_id(key)?);
    }
    let special = SpecialIds {
        beginning: metadata.optional_id("tokenizer.ggml.bos_token_id")?,
        ends,
        // Where the key is missing, as llama.cpp does.
        adds_beginning: adds.unwrap_or(is_sentence_piece || is_llama3(pre)),
    };
    Ok((json.to_string().into_bytes(), special))
}

fn is_llama3(pre: &str) -> bool {
    matches!(pre, "llama-bpe" | "llama3" | "llama-v3")
}

/// The tokens that are found in a text before it is cut into words.
fn added_tokens(tokens: &[String], kinds: &[i64]) -> Vec<Value> {
    let mut added = Vec::new();
    for (id, (token, kind)) in tokens.iter().zip(kinds).enumerate() {
        if matches!(*kind, UNKNOWN | CONTROL | USER_DEFINED) {
            added.push(json!({
                "id": id, "content": token, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": *kind != USER_DEFINED,
            }));
        }
    }
    added
}

fn ids(tokens: &[String]) -> HashMap<&str, usize> {
    tokens.iter().enumerate().map(|(id, token)| (token.as_str(), id)).collect()
}

/// A byte-level BPE. `pre` names the rule that cuts text into words before the merges; an unknown one
/// is an error, since a wrong rule gives wrong tokens without a sign.
fn byte_level_bpe(
    tokens: &[String],
    merges: &[String],
    kinds: &[i64],
    pre: &str,
) -> Result<Value, String> {
    let mut pairs = Vec::with_capacity(merges.len());
    for merge in merges {
        let Some(pair) = merge.split_once(' ') else {
            return Err(format!("cannot be used: the merge {merge:?} is not two tokens"));
        };
        pairs.push(pair);
    }
    let byte_level = |use_regex: bool| {
        json!({
            "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
            "use_regex": use_regex,
        })
    };
    let split = |pattern: &str| {
        json!({
            "type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated",
            "invert": false,
        })
    };
    let parts = match pre {
        "gpt-2" | "default" => vec![byte_level(true)],
        "smollm" => {
            let digits = json!({"type": "Digits", "individual_digits": true});
            vec![digits, byte_level(true)]
        }
        _ if is_llama3(pre) => vec![split(pre_tokenizer::LLAMA3), byte_level(false)],
        "qwen2" => vec![split(pre_tokenizer::QWEN2), byte_level(false)],
        _ => {
            return Err(format!(
                "is {pre:?}, a rule for words that is not known; hone knows gpt-2, smollm, llama-bpe \
                 and qwen2. Use the model's Hugging Face folder, whose tokenizer.json says how"
            ));
        }
    };
    Ok(json!({
        "version": "1.0",
        "added_tokens": added_tokens(tokens, kinds),
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": parts},
        "decoder": byte_level(true),
        "model": {
            "type": "BPE", "vocab": ids(tokens), "merges": pairs, "fuse_unk": false,
            "byte_fallback": false, "ignore_merges": is_llama3(pre),
        },
    }))
}

/// A SentencePiece BPE, which merges what has the highest score. The `tokenizers` library merges by
/// rank, so every way to put a token together from two others becomes a merge, by score.
fn sentence_piece_bpe(
    tokens: &[String],
    scores: &[f32],
    kinds: &[i64],
    add_space_prefix: bool,
) -> Value {
    let ids = ids(tokens);
    let mut merges: Vec<(f32, &str, &str)> = Vec::new();
    for ((token, score), kind) in tokens.iter().zip(scores).zip(kinds) {
        if !matches!(*kind, NORMAL | USER_DEFINED) {
            continue;
        }
        for (place, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(place);
            if ids.contains_key(left) && ids.contains_key(right) {
                merges.push((*score, left, right));
            }
        }
    }
    // Stable, and of ways to one token the one with the longer left part first.
    merges.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| b.1.len().cmp(&a.1.len())));
    let pairs: Vec<(&str, &str)> = merges.iter().map(|(_, left, right)| (*left, *right)).collect();
    let unknown = kinds.iter().position(|kind| *kind == UNKNOWN).map(|id| tokens[id].as_str());
    let mut normalizers =
        vec![json!({"type": "Replace", "pattern": {"String": " "}, "content": SPACE})];
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": SPACE}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if add_space_prefix {
        normalizers.insert(0, json!({"type": "Prepend", "prepend": SPACE}));
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    json!({
        "version": "1.0",
        "added_tokens": added_tokens(tokens, kinds),
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE", "vocab": ids, "merges": pairs, "unk_token": unknown, "fuse_unk": true,
            "byte_fallback": true,
        },
    })
}
