//! The metadata of a GGUF file that describes the tokenizer, from a `tokenizer.json`: tokens, their types,
//! merges or scores, and the name of the pre-tokenizer. The inverse of `train::model::weights::gguf`.

use std::collections::BTreeMap;

use candle_core::quantized::gguf_file::Value;
use serde_json::Value as Json;

use super::error::ExportError;
use super::gguf_metadata::text;
use crate::artifacts::gguf::GgufMetadata;
use crate::train::model::base_model::BaseModel;
use crate::train::model::chat_template::DEFAULT;
use crate::train::model::weights::gguf::{TEMPLATE_KEY, pre_tokenizer};

/// Values of `tokenizer.ggml.token_type`.
const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;

/// The character for a space in SentencePiece's vocabularies.
const SPACE: &str = "▁";

/// Score of a token that no merge produces: lower than any other score.
const UNMERGED: f32 = -1e9;

/// The metadata of the tokenizer and the chat template; `rows` is the number of rows of the embedding.
///
/// # Errors
/// A kind of tokenizer that llama.cpp does not have, or an unknown pre-tokenizer.
pub(super) fn metadata(base: &BaseModel, rows: usize) -> Result<GgufMetadata, ExportError> {
    let files: BTreeMap<String, Vec<u8>> = base.companions()?.into_iter().collect();
    let read = |name: &str| -> Json {
        files.get(name).and_then(|bytes| serde_json::from_slice(bytes).ok()).unwrap_or_default()
    };
    let json = read("tokenizer.json");
    let model = &json["model"];
    if !model["merges"].is_array() || !matches!(model["type"].as_str(), None | Some("BPE")) {
        return Err(unsupported(&format!("is of the kind {}", model["type"])));
    }
    let is_byte_level = holds_type(&json["pre_tokenizer"], "ByteLevel");
    let vocabulary = TokenTable::read(&json, rows, is_byte_level)?;
    let merges = merges(&model["merges"])?;

    let mut keys = GgufMetadata::new();
    let mut set = |key: &str, value: Value| keys.push((format!("tokenizer.ggml.{key}"), value));
    if is_byte_level {
        set("model", text("gpt2"));
        set("pre", text(pre_tokenizer(&json)?));
        let joined = merges.iter().map(|(left, right)| Value::String(format!("{left} {right}")));
        set("merges", Value::Array(joined.collect()));
    } else {
        let prefix = space_prefix(&json)?;
        set("model", text("llama"));
        set("pre", text("default"));
        let scores = vocabulary.scores(&merges);
        set("scores", Value::Array(scores.into_iter().map(Value::F32).collect()));
        set("add_space_prefix", Value::Bool(prefix));
    }
    let special = base.tokenizer.special();
    let config = read("tokenizer_config.json");
    let named = |key: &str| {
        let name = config[key].as_str().or(config[key]["content"].as_str());
        name.and_then(|name| vocabulary.id(name))
    };
    let unknown = model["unk_token"].as_str().and_then(|name| vocabulary.id(name));
    for (key, id) in [
        ("bos_token_id", special.beginning),
        ("eos_token_id", special.ends.first().copied()),
        ("eot_token_id", special.ends.get(1).copied()),
        ("unknown_token_id", unknown),
        ("padding_token_id", named("pad_token")),
    ] {
        if let Some(id) = id {
            set(key, Value::U32(id));
        }
    }
    set("add_bos_token", Value::Bool(special.adds_beginning));
    set("tokens", Value::Array(vocabulary.tokens.into_iter().map(Value::String).collect()));
    set("token_type", Value::Array(vocabulary.kinds.into_iter().map(Value::I32).collect()));
    keys.extend(templates(base));
    Ok(keys)
}

/// The chat templates, the default one under a key of its own and others by their names.
fn templates(base: &BaseModel) -> GgufMetadata {
    let mut keys = GgufMetadata::new();
    let mut names = Vec::new();
    for (name, template) in base.templates.iter() {
        if name == DEFAULT {
            keys.push((TEMPLATE_KEY.to_owned(), text(template)));
        } else {
            names.push(text(name));
            keys.push((format!("{TEMPLATE_KEY}.{name}"), text(template)));
        }
    }
    if !names.is_empty() {
        keys.push(("tokenizer.chat_templates".to_owned(), Value::Array(names)));
    }
    keys
}

fn unsupported(what: &str) -> ExportError {
    ExportError::Unsupported(format!(
        "the model's tokenizer {what}, which hone cannot put into a GGUF file: export it as \
         \"merged\""
    ))
}

/// Tokens by their ids.
struct TokenTable {
    tokens: Vec<String>,
    kinds: Vec<i32>,
}

impl TokenTable {
    fn read(json: &Json, rows: usize, is_byte_level: bool) -> Result<Self, ExportError> {
        let mut tokens: Vec<String> = (0..rows).map(|id| format!("[PAD{id}]")).collect();
        let mut kinds = vec![UNUSED; rows];
        let mut put = |id: Option<u64>, token: &str, kind: i32| match id {
            Some(id) if (id as usize) < rows => {
                token.clone_into(&mut tokens[id as usize]);
                kinds[id as usize] = kind;
                Ok(())
            }
            _ => Err(unsupported(&format!("has the token {token:?}, of which there is no row"))),
        };
        let unknown = json["model"]["unk_token"].as_str();
        for (token, id) in json["model"]["vocab"].as_object().into_iter().flatten() {
            let is_byte = !is_byte_level
                && token.len() == 6
                && token.starts_with("<0x")
                && token.ends_with('>');
            let kind = match (is_byte, Some(token.as_str()) == unknown) {
                (true, _) => BYTE,
                (false, true) => UNKNOWN,
                (false, false) => NORMAL,
            };
            put(id.as_u64(), token, kind)?;
        }
        for added in json["added_tokens"].as_array().into_iter().flatten() {
            let content = added["content"].as_str().unwrap_or_default();
            let is_special = added["special"].as_bool().unwrap_or_default();
            let kind = match (is_special, Some(content) == unknown) {
                (_, true) => UNKNOWN,
                (true, false) => CONTROL,
                (false, false) => USER_DEFINED,
            };
            put(added["id"].as_u64(), content, kind)?;
        }
        Ok(Self { tokens, kinds })
    }

    fn id(&self, token: &str) -> Option<u32> {
        self.tokens.iter().position(|other| other == token).map(|id| id as u32)
    }

    /// SentencePiece merges by the highest score, the `tokenizers` library by the first in its list. So the
    /// score of a token is minus the index of the first merge that produces it.
    fn scores(&self, merges: &[(String, String)]) -> Vec<f32> {
        let mut first: BTreeMap<String, usize> = BTreeMap::new();
        for (index, (left, right)) in merges.iter().enumerate() {
            first.entry(format!("{left}{right}")).or_insert(index);
        }
        let scores = self.tokens.iter().zip(&self.kinds).map(|(token, kind)| match kind {
            &NORMAL => first.get(token).map_or(UNMERGED, |index| -(*index as f32)),
            _ => 0.0,
        });
        scores.collect()
    }
}

/// The merges, which are texts with a space or pairs.
fn merges(list: &Json) -> Result<Vec<(String, String)>, ExportError> {
    let mut merges = Vec::new();
    for merge in list.as_array().into_iter().flatten() {
        let pair = match merge {
            Json::String(both) => both.split_once(' '),
            pair => pair[0].as_str().zip(pair[1].as_str()),
        };
        let (left, right) = pair.ok_or_else(|| unsupported(&format!("has the merge {merge}")))?;
        merges.push((left.to_owned(), right.to_owned()));
    }
    Ok(merges)
}

/// The members of a `Sequence`, or the single component.
fn parts<'a>(json: &'a Json, list: &str) -> Vec<&'a Json> {
    match json["type"].as_str() {
        None => Vec::new(),
        Some("Sequence") => json[list].as_array().into_iter().flatten().collect(),
        Some(_) => vec![json],
    }
}

fn holds_type(pre_tokenizer: &Json, kind: &str) -> bool {
    parts(pre_tokenizer, "pretokenizers").iter().any(|part| part["type"] == kind)
}

/// `tokenizer.ggml.pre` of a byte-level tokenizer.
fn pre_tokenizer(json: &Json) -> Result<&'static str, ExportError> {
    for normalizer in parts(&json["normalizer"], "normalizers") {
        // NFC is harmless for composed text. llama.cpp does not normalise.
        if normalizer["type"] != "NFC" {
            return Err(unsupported(&format!("changes text by {}", normalizer["type"])));
        }
    }
    let parts = parts(&json["pre_tokenizer"], "pretokenizers");
    let uses_regex = |part: &Json| part["use_regex"].as_bool().unwrap_or(true);
    if parts.iter().any(|part| part["add_prefix_space"] == true) {
        return Err(unsupported("puts a space before each text"));
    }
    let kinds: Vec<&str> = parts.iter().filter_map(|part| part["type"].as_str()).collect();
    match (&kinds[..], &parts[..]) {
        (["ByteLevel"], [bytes]) if uses_regex(bytes) => Ok("gpt-2"),
        (["Digits", "ByteLevel"], [digits, bytes])
            if digits["individual_digits"] == true && uses_regex(bytes) =>
        {
            Ok("smollm")
        }
        (["Split", "ByteLevel"], [split, bytes]) if !uses_regex(bytes) => {
            let pattern = split["pattern"]["Regex"].as_str().unwrap_or_default();
            match pattern {
                pre_tokenizer::LLAMA3 => Ok("llama-bpe"),
                pre_tokenizer::QWEN2 => Ok("qwen2"),
                _ => Err(unsupported(&format!("cuts words by the rule {pattern:?}"))),
            }
        }
        _ => Err(unsupported(&format!("cuts words by {}", kinds.join(" and ")))),
    }
}

/// Whether a SentencePiece tokenizer puts a space before each text.
fn space_prefix(json: &Json) -> Result<bool, ExportError> {
    let mut prefix = false;
    let mut replaces = false;
    for part in parts(&json["normalizer"], "normalizers") {
        match part["type"].as_str().unwrap_or_default() {
            "Prepend" if part["prepend"] == SPACE => prefix = true,
            "Replace" if part["content"] == SPACE => replaces = true,
            other => return Err(unsupported(&format!("changes text by {other}"))),
        }
    }
    for part in parts(&json["pre_tokenizer"], "pretokenizers") {
        match part["type"].as_str().unwrap_or_default() {
            "Metaspace" => {
                replaces = true;
                prefix |= part["prepend_scheme"] != "never" && part["add_prefix_space"] != false;
            }
            // Spaces have been replaced by then, so this splits nothing.
            "Split" if replaces && part["pattern"]["String"] == " " => {}
            other => return Err(unsupported(&format!("cuts words by {other}"))),
        }
    }
    if !replaces {
        return Err(unsupported("is neither byte-level nor SentencePiece's"));
    }
    Ok(prefix)
}
