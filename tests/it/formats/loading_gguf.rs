//! A GGUF file is the same model as the Hugging Face folder that it was converted from; what is
//! damaged or unknown is said.

use std::path::{Path, PathBuf};

use candle_core::quantized::gguf_file::Value;
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use hone::train::engine::{BackendKind, InferenceEngine};
use hone::train::model::base_model::BaseModel;
use hone::train::model::config::ModelConfig;
use hone::train::model::error::LoadError;
use hone::train::model::weights::{WeightSource, gguf, safetensors};
use proptest::prelude::*;
use serde_json::Value as Json;

use crate::support::gguf_writer::{self, Keys, convert, plain, text};

fn golden(family: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/golden").join(family)
}

fn config_of(folder: &Path) -> Json {
    serde_json::from_slice(&std::fs::read(folder.join("config.json")).unwrap()).unwrap()
}

const TOKENS: [u32; 40] = [
    1, 17, 211, 5, 90, 300, 4, 4, 78, 12, 250, 33, 101, 9, 64, 3, 199, 280, 41, 7, 1, 2, 150, 61,
    23, 310, 88, 19, 205, 6, 71, 140, 11, 266, 35, 92, 8, 175, 54, 29,
];

fn logits(config: &Json, weights: &dyn WeightSource) -> Vec<f32> {
    let responder = InferenceEngine::load(config, weights, BackendKind::CpuF32).unwrap();
    responder.logits(None, &TOKENS).unwrap()
}

/// Converts the golden model, with keys beside those that it has, and compares what the file
/// computes with what the folder computes under `config`.
fn compare(family: &str, config: &Json, more: Keys, tolerance: f32) {
    let folder = golden(family);
    let (mut keys, tensors) = convert(&folder, config);
    keys.extend(more);
    let target = tempfile::tempdir().unwrap();
    let path = target.path().join("model.gguf");
    gguf_writer::write(&path, &keys, &tensors);
    let opened = BaseModel::open(&path).unwrap_or_else(|error| panic!("{family}: {error}"));

    let mut read = ModelConfig::read(&opened.config).unwrap();
    let wanted = ModelConfig::read(config).unwrap();
    if tolerance > 0.0 {
        read.ropes.clone_from(&wanted.ropes);
    }
    assert_eq!(read, wanted, "{family}");

    let weights = safetensors::open(&folder).unwrap();
    let wanted = logits(config, weights.as_ref());
    let made = logits(&opened.config, opened.weights.as_ref());
    let most = wanted.iter().fold(0.0f32, |most, x| most.max(x.abs()));
    for (made, wanted) in made.iter().zip(&wanted) {
        assert!((made - wanted).abs() <= tolerance * most, "{family}: {made} {wanted}");
    }
}

#[test]
fn a_gguf_file_computes_what_the_folder_computes_that_it_was_converted_from() {
    for family in ["llama", "qwen2", "qwen3", "phi3", "gpt2", "gpt_neox"] {
        compare(family, &config_of(&golden(family)), Keys::new(), 0.0);
    }
    // The divisors of Llama 3's rule are 32-bit floats in the file.
    compare("llama3_rope", &config_of(&golden("llama3_rope")), Keys::new(), 1e-5);
}

#[test]
fn a_gguf_file_of_phi3_with_long_rope_computes_what_the_folder_computes() {
    let mut config = config_of(&golden("phi3"));
    let rope = &mut config["rope_parameters"];
    rope["rope_type"] = "longrope".into();
    rope["short_factor"] = serde_json::json!([1.0, 1.1, 1.3, 1.7]);
    rope["long_factor"] = serde_json::json!([1.5, 2.0, 3.0, 4.0]);
    rope["original_max_position_embeddings"] = 64.into();
    compare("phi3", &config, Keys::new(), 1e-5);
}

#[test]
fn a_gguf_file_of_gemma_computes_what_the_folder_computes() {
    // The file has no key for the width that scales the scores: it is the head's.
    for family in ["gemma2", "gemma3_text"] {
        let mut config = config_of(&golden(family));
        config["query_pre_attn_scalar"] = config["head_dim"].clone();
        let mut more = Keys::new();
        if family == "gemma3_text" {
            let key = "gemma3.attention.sliding_window_pattern".to_owned();
            more.push((key, Value::U32(3)));
        }
        compare(family, &config, more, 0.0);
    }
    let mut config = config_of(&golden("gemma3_text"));
    config["query_pre_attn_scalar"] = config["head_dim"].clone();
    config["layer_types"] = vec!["sliding_attention"; 3].into();
    compare("gemma3_text", &config, Keys::new(), 0.0);
}

#[test]
fn a_gguf_file_of_mistral_computes_what_the_folder_computes() {
    let mut config = config_of(&golden("mistral"));
    let window = ("llama.attention.sliding_window".to_owned(), Value::U32(14));
    compare("mistral", &config, vec![window], 0.0);
    // llama.cpp's converter leaves the window out: a model without one.
    config["sliding_window"] = Json::Null;
    config["model_type"] = "llama".into();
    compare("mistral", &config, Keys::new(), 0.0);
}

/// What a test does to a file before it is written.
type Damage<'a> = &'a dyn Fn(&mut Keys, &mut Vec<(String, QTensor)>);

/// A small llama, its `attn_v` of the given type.
fn small_llama(values: &QTensor) -> (Keys, Vec<(String, QTensor)>) {
    let folder = golden("llama");
    let mut config = config_of(&folder);
    config["hidden_size"] = 256.into();
    let (keys, _) = convert(&folder, &config);
    let copy = values.dequantize(&Device::Cpu).unwrap();
    let same = QTensor::quantize(&copy, values.dtype()).unwrap();
    let tensors = vec![
        ("token_embd.weight".to_owned(), plain(&random(320, 256, 1))),
        ("blk.0.attn_v.weight".to_owned(), same),
    ];
    (keys, tensors)
}

/// Numbers between -1 and 1.
fn random(rows: usize, columns: usize, seed: u64) -> Tensor {
    let mut state = seed;
    let mut values = Vec::with_capacity(rows * columns);
    for _ in 0..rows * columns {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        values.push((state >> 40) as f32 / (1u64 << 23) as f32 - 1.0);
    }
    Tensor::from_vec(values, (rows, columns), &Device::Cpu).unwrap()
}

const TYPES: [GgmlDType; 15] = [
    GgmlDType::F32,
    GgmlDType::F16,
    GgmlDType::BF16,
    GgmlDType::Q4_0,
    GgmlDType::Q4_1,
    GgmlDType::Q5_0,
    GgmlDType::Q5_1,
    GgmlDType::Q8_0,
    GgmlDType::Q8_1,
    GgmlDType::Q2K,
    GgmlDType::Q3K,
    GgmlDType::Q4K,
    GgmlDType::Q5K,
    GgmlDType::Q6K,
    GgmlDType::Q8K,
];

#[test]
fn every_type_of_tensor_is_read_as_its_dequantised_values() {
    let target = tempfile::tempdir().unwrap();
    let path = target.path().join("model.gguf");
    let original = random(32, 256, 2);
    for kind in TYPES {
        let quantised = QTensor::quantize(&original, kind).unwrap();
        let (keys, mut tensors) = small_llama(&quantised);
        let wanted: Vec<f32> =
            quantised.dequantize(&Device::Cpu).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        tensors[1].1 = quantised;
        gguf_writer::write(&path, &keys, &tensors);
        let opened = gguf::open(&path).unwrap();
        let read = opened.weights.tensor("model.layers.0.self_attn.v_proj.weight").unwrap();
        assert_eq!(read.shape, [32, 256], "{kind:?}");
        assert_eq!(read.into_f32(), wanted, "{kind:?}");
        // And it is the tensor that was quantised, as far as the type goes.
        let original: Vec<f32> = original.flatten_all().unwrap().to_vec1().unwrap();
        let apart = wanted.iter().zip(&original).map(|(a, b)| (a - b).abs()).sum::<f32>();
        assert!(apart / 8192.0 < 0.15, "{kind:?}: {}", apart / 8192.0);
    }
}

fn error(path: &Path) -> String {
    match gguf::open(path) {
        Ok(_) => panic!("it opens"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn an_architecture_that_hone_does_not_read_from_gguf_is_named_with_those_that_it_reads() {
    let target = tempfile::tempdir().unwrap();
    let path = target.path().join("model.gguf");
    let (mut keys, tensors) = small_llama(&plain(&random(32, 256, 2)));
    keys[0].1 = text("mamba");
    gguf_writer::write(&path, &keys, &tensors);
    let message = error(&path);
    for word in ["mamba", "llama", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "gpt2", "gptneox"]
    {
        assert!(message.contains(word), "{word}: {message}");
    }
}

#[test]
fn keys_and_tensors_that_do_not_fit_are_named() {
    let target = tempfile::tempdir().unwrap();
    let path = target.path().join("model.gguf");
    let values = plain(&random(32, 256, 2));
    let fails = |change: Damage<'_>, wanted: &str| {
        let (mut keys, mut tensors) = small_llama(&values);
        change(&mut keys, &mut tensors);
        gguf_writer::write(&path, &keys, &tensors);
        let message = error(&path);
        assert!(message.contains(wanted), "{message}");
    };
    let set = |keys: &mut Keys, key: &str, value: Value| {
        keys.retain(|(other, _)| other != key);
        keys.push((key.to_owned(), value));
    };
    fails(
        &|keys, _| keys.retain(|(key, _)| key != "llama.block_count"),
        "\"llama.block_count\" is missing",
    );
    fails(&|keys, _| set(keys, "llama.block_count", text("two")), "is not a positive number");
    fails(&|keys, _| set(keys, "llama.rope.scaling.type", text("yarn")), "\"yarn\"");
    fails(&|keys, _| set(keys, "llama.rope.dimension_count", Value::U32(8)), "heads are 16 wide");
    fails(&|keys, _| set(keys, "llama.attention.value_length", Value::U32(8)), "hone knows equal");
    fails(&|keys, _| set(keys, "tokenizer.ggml.pre", text("tekken")), "\"tekken\"");
    fails(&|keys, _| set(keys, "tokenizer.ggml.model", text("t5")), "\"t5\"");
    fails(
        &|keys, _| set(keys, "tokenizer.ggml.token_type", Value::Array(vec![Value::I32(1)])),
        "1 entries for 320 tokens",
    );
    fails(
        &|_, tensors| tensors.push(("blk.0.ssm_a".to_owned(), plain(&random(1, 4, 1)))),
        "\"blk.0.ssm_a\" is not part of llama",
    );
    fails(
        &|_, tensors| tensors.push(("blk.0.attn_q.weight".to_owned(), plain(&random(6, 4, 1)))),
        "does not fit 4 query and 2 key heads",
    );
    fails(&|_, tensors| tensors[0].1 = plain(&random(100, 256, 1)), "lists 320 tokens");
}

/// A file with a vocabulary of SentencePiece's, in a folder that goes when it is dropped.
pub fn sentence_piece_file(given: &Json, adds_space: bool) -> (tempfile::TempDir, PathBuf) {
    let target = tempfile::tempdir().unwrap();
    let path = target.path().join("model.gguf");
    let list = |key: &str, value: &dyn Fn(&Json) -> Value| {
        Value::Array(given[key].as_array().unwrap().iter().map(value).collect())
    };
    let (mut keys, mut tensors) = small_llama(&plain(&random(32, 256, 2)));
    keys.retain(|(key, _)| !key.starts_with("tokenizer."));
    let mut set = |key: &str, value: Value| keys.push((format!("tokenizer.ggml.{key}"), value));
    set("model", text("llama"));
    set("pre", text("default"));
    set("tokens", list("pieces", &|piece| text(piece.as_str().unwrap())));
    set("scores", list("scores", &|score| Value::F32(score.as_f64().unwrap() as f32)));
    set("token_type", list("kinds", &|kind| Value::I32(kind.as_i64().unwrap() as i32)));
    set("add_space_prefix", Value::Bool(adds_space));
    set("bos_token_id", Value::U32(1));
    set("eos_token_id", Value::U32(2));
    tensors[0].1 = plain(&random(480, 256, 1));
    gguf_writer::write(&path, &keys, &tensors);
    (target, path)
}

#[test]
fn a_sentencepiece_vocabulary_gives_the_tokens_that_sentencepiece_gives() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/sentencepiece.json");
    let reference: Json = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    for (name, adds_space) in [("llama", true), ("gemma", false)] {
        let given = &reference[name];
        let (_target, path) = sentence_piece_file(given, adds_space);
        let base = BaseModel::open(&path).unwrap();
        assert!(base.tokenizer.special().adds_beginning, "where the key is missing, as llama.cpp");
        for case in given["cases"].as_array().unwrap() {
            let text = case["text"].as_str().unwrap();
            let tokens = base.tokenizer.encode(text).unwrap();
            let ids: Vec<u32> = tokens.iter().map(|(id, _)| *id).collect();
            assert_eq!(serde_json::json!(ids), case["ids"], "{name} {text:?}");
            // A space stands for itself and for SentencePiece's sign of it.
            if !(text.contains('▁') || adds_space && text.contains("<start>")) {
                assert_eq!(base.tokenizer.decode(&ids).unwrap(), text, "{name}");
            }
            // Every byte belongs to a token: the loss mask misses none.
            let mut covered = 0;
            for (_, range) in &tokens {
                assert!(range.start <= covered, "{name} {text:?}");
                covered = covered.max(range.end);
            }
            assert_eq!(covered, text.len(), "{name} {text:?}");
        }
    }
}

/// Bytes of a whole file.
fn whole_file() -> Vec<u8> {
    let target = tempfile::tempdir().unwrap();
    let path = target.path().join("model.gguf");
    let (keys, tensors) =
        small_llama(&QTensor::quantize(&random(32, 256, 2), GgmlDType::Q4K).unwrap());
    gguf_writer::write(&path, &keys, &tensors);
    std::fs::read(path).unwrap()
}

/// What opening a file with these bytes says, and reading every tensor of it.
fn read_all(bytes: &[u8]) -> Result<(), LoadError> {
    let target = tempfile::tempdir().unwrap();
    let path = target.path().join("model.gguf");
    std::fs::write(&path, bytes).unwrap();
    let opened = gguf::open(&path)?;
    for (name, _) in opened.weights.shapes() {
        opened.weights.tensor(&name)?;
    }
    Ok(())
}

#[test]
fn a_truncated_gguf_file_is_refused_at_every_length() {
    let bytes = whole_file();
    read_all(&bytes).unwrap();
    // The last tensor's padding may be missing.
    let data = bytes.len() - 32 * 144 * 32 / 32;
    for length in (0..data).step_by(data / 200) {
        let message = read_all(&bytes[..length]).unwrap_err().to_string();
        assert!(message.contains("model.gguf"), "{message}");
    }
}

#[test]
fn a_gguf_file_that_claims_more_than_it_holds_is_refused_before_memory_is_taken() {
    let bytes = whole_file();
    let place = |needle: &[u8]| {
        bytes.windows(needle.len()).position(|window| window == needle).unwrap() + needle.len()
    };
    let with = |at: usize, value: &[u8]| {
        let mut changed = bytes.clone();
        changed[at..at + value.len()].copy_from_slice(value);
        read_all(&changed).unwrap_err().to_string()
    };
    let huge = (1u64 << 40).to_le_bytes();
    // Numbers of tensors and of keys, the length of the first key.
    for at in [8, 16, 24] {
        with(at, &huge);
    }
    // The number of tokens, behind the types of the value and of its elements.
    with(place(b"tokenizer.ggml.tokens") + 8, &huge);
    // A tensor's dimensions stand behind their number, its offset behind its type.
    let tensor = place(b"blk.0.attn_v.weight") + 4;
    let message = with(tensor, &(1u64 << 32).to_le_bytes());
    assert!(message.contains("beyond the file's"), "{message}");
    let message = with(tensor, &u64::MAX.to_le_bytes());
    assert!(message.contains("whole blocks of 256"), "{message}");
    let message = with(tensor + 20, &huge);
    assert!(message.contains("beyond the file's"), "{message}");
    let message = with(tensor + 20, &0u64.to_le_bytes());
    assert!(message.contains("overlap"), "{message}");
    let message = with(tensor + 16, &20u32.to_le_bytes());
    assert!(message.contains("Q4_1") && message.contains("unknown"), "{message}");
}

#[test]
fn a_gguf_file_with_an_alignment_of_zero_is_refused() {
    let target = tempfile::tempdir().unwrap();
    let path = target.path().join("model.gguf");
    let (mut keys, tensors) = small_llama(&plain(&random(32, 256, 2)));
    keys.push(("general.alignment".to_owned(), Value::U32(0)));
    gguf_writer::write(&path, &keys, &tensors);
    assert!(error(&path).contains("alignment is zero"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn a_damaged_gguf_file_never_panics(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        in_header in any::<bool>(),
    ) {
        let mut bytes = whole_file();
        let end = if in_header { 600.min(bytes.len()) } else { bytes.len() };
        for (place, byte) in changes {
            let place = place.index(end);
            bytes[place] = byte;
        }
        let _said = read_all(&bytes);
    }
}
