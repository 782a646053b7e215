//! What a job made, in the formats of other programs: each holds what was trained, by hone's own reading
//! and by a converter that was written for the tests alone; and what a format cannot hold is refused.
//! The programs themselves judge in `other_programs`.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use candle_core::Device;
use candle_core::quantized::gguf_file::{Content, Value as GgufValue};
use hone::artifacts::model::WeightType;
use hone::artifacts::peft;
use hone::export::{ExportFormat, ExportOptions, OpenedModel, Quantization, write};
use hone::train::engine::{BackendKind, InferenceEngine};
use hone::train::model::base_model::BaseModel;
use hone::train::model::lora::LoraSettings;
use serde_json::Value;

use crate::formats::loading_pytorch::{tensors_of as golden_tensors, write_tensors};
use crate::support::gguf_writer;
use crate::train::golden::read_json;

/// Every architecture, by the name of its golden case.
pub const FAMILIES: &[&str] = &[
    "llama",
    "llama3_rope",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma2",
    "gemma3_text",
    "phi3",
    "gpt2",
    "gpt_neox",
];

/// Fewer than the smallest sliding window of a golden model.
pub const TOKENS: [u32; 12] = [1, 17, 211, 5, 90, 300, 4, 4, 78, 12, 250, 33];

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

/// A golden model as a base in Hugging Face layout, with a tokenizer, below `folder`; and the folder of
/// its trained adapter.
pub fn base_of(family: &str, folder: &Path) -> (PathBuf, PathBuf) {
    let golden = data("golden").join(family);
    let base = folder.join("base");
    std::fs::create_dir(&base).expect("makes");
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(data("tiny-llama").join(name), base.join(name)).expect("copies");
    }
    std::fs::copy(golden.join("model.safetensors"), base.join("model.safetensors"))
        .expect("copies");
    let mut config = read_json(&golden.join("config.json"));
    if family.starts_with("gemma") {
        // A GGUF file has no key for it: it is the head's width there.
        config["query_pre_attn_scalar"] = config["head_dim"].clone();
    }
    std::fs::write(base.join("config.json"), config.to_string()).expect("writes");
    (base, golden.join("adapter"))
}

/// Exports into a new folder below `folder`.
pub fn export(
    tuned: &OpenedModel,
    format: ExportFormat,
    quantization: Quantization,
    folder: &Path,
) -> PathBuf {
    let out = folder.join(format!("{}-{}", format.as_str(), quantization.as_str()));
    std::fs::create_dir(&out).expect("makes");
    let options = ExportOptions { quantization, ..ExportOptions::new(format) };
    write(tuned, &options, &out).unwrap_or_else(|error| panic!("{format:?}: {error}"));
    out
}

/// Merges into a new folder below `folder`, with weights of a type; the folder, and what was said.
pub fn merge(
    tuned: &OpenedModel,
    weight_type: Option<WeightType>,
    folder: &Path,
) -> (PathBuf, Vec<String>) {
    let name = weight_type.map_or("of-the-base", WeightType::as_str);
    let out = folder.join(format!("merged-{name}"));
    std::fs::create_dir(&out).expect("makes");
    let options = ExportOptions { weight_type, ..ExportOptions::new(ExportFormat::Merged) };
    let said = write(tuned, &options, &out).unwrap_or_else(|error| panic!("{error}"));
    (out, said)
}

/// A token that was the likeliest.
pub struct Written {
    pub id: u32,
    /// By how much its logit leads the second.
    pub lead: f32,
    /// In nats.
    pub log_probability: f32,
}

/// A base loaded to answer, and the adapter beside it.
pub struct Model {
    pub base: BaseModel,
    responder: InferenceEngine,
    adapter: Option<hone::train::engine::AttachedAdapter>,
}

impl Model {
    /// In 32-bit floats.
    pub fn load(base: &Path, adapter: Option<&Path>) -> Self {
        let base = BaseModel::open(base).unwrap_or_else(|error| panic!("{error}"));
        let loaded =
            InferenceEngine::load(&base.config, base.weights.as_ref(), BackendKind::CpuF32);
        let responder = loaded.expect("loads");
        let adapter = adapter.map(|folder| {
            let bytes = |name| std::fs::read(folder.join(name)).expect("it is there");
            let read = peft::read(&bytes(peft::CONFIG_FILE), &bytes(peft::WEIGHTS_FILE));
            let (config, tensors) = read.expect("an adapter");
            responder.attach(&LoraSettings::of_peft(&config), &tensors).expect("attaches")
        });
        Self { base, responder, adapter }
    }

    /// Logits of every position.
    pub fn logits(&self, ids: &[u32]) -> Vec<f32> {
        self.responder.logits(self.adapter.as_ref(), ids).expect("computes")
    }

    /// The likeliest tokens, each after all before it.
    pub fn greedy(&self, prompt: &[u32], most: usize) -> Vec<Written> {
        let mut session = self.responder.begin(self.adapter.as_ref()).expect("begins");
        let mut logits = session.extend(prompt).expect("computes");
        let mut written = Vec::new();
        for _ in 0..most {
            let mut best = 0;
            for (id, logit) in logits.iter().enumerate() {
                if *logit > logits[best] {
                    best = id;
                }
            }
            let others = logits.iter().enumerate().filter(|(id, _)| *id != best);
            let second = others.fold(f32::NEG_INFINITY, |most, (_, logit)| most.max(*logit));
            let sum: f32 = logits.iter().map(|logit| (logit - logits[best]).exp()).sum();
            let lead = logits[best] - second;
            written.push(Written { id: best as u32, lead, log_probability: -sum.ln() });
            logits = session.extend(&[best as u32]).expect("computes");
        }
        written
    }
}

/// Largest difference over the largest logit.
fn distance(made: &[f32], wanted: &[f32]) -> f32 {
    assert_eq!(made.len(), wanted.len());
    let most = wanted.iter().fold(0.0f32, |most, logit| most.max(logit.abs()));
    let apart = made.iter().zip(wanted).fold(0.0f32, |most, (a, b)| most.max((a - b).abs()));
    apart / most
}

#[test]
fn merged_and_gguf_models_of_every_family_compute_what_base_and_adapter_do() {
    for family in FAMILIES {
        let folder = tempfile::tempdir().expect("a folder");
        let (base, adapter) = base_of(family, folder.path());
        let wanted = Model::load(&base, Some(&adapter)).logits(&TOKENS);
        let plain = Model::load(&base, None).logits(&TOKENS);
        assert!(distance(&plain, &wanted) > 0.1, "{family}: the adapter does hardly anything");
        let tuned = OpenedModel::open("ft:test", &base, Some(&adapter)).expect("opens");

        let merged = export(&tuned, ExportFormat::Merged, Quantization::F16, folder.path());
        let apart = distance(&Model::load(&merged, None).logits(&TOKENS), &wanted);
        assert!(apart < 1e-5, "{family}: merged {apart}");
        for (quantization, allowed) in [(Quantization::F16, 2e-3), (Quantization::Q8_0, 0.1)] {
            let made = export(&tuned, ExportFormat::Gguf, quantization, folder.path());
            let apart = distance(&Model::load(&made, None).logits(&TOKENS), &wanted);
            assert!(apart < allowed, "{family}: {quantization:?} {apart}");
            let modelfile = std::fs::read_to_string(made.join("Modelfile")).expect("reads");
            assert!(modelfile.contains("FROM ./model.gguf\n"), "{modelfile}");
            assert!(modelfile.contains("PARAMETER stop \"<|im_end|>\"\n"), "{modelfile}");
            assert!(modelfile.contains("TEMPLATE \"\"\""), "{modelfile}");
            assert!(modelfile.contains("{{ \"<|im_start|>assistant\\n\" }}\"\"\""), "{modelfile}");
        }
    }
}

#[test]
fn a_base_that_pytorch_saved_is_exported_in_the_bytes_of_the_same_safetensors() {
    for family in ["gpt2", "llama"] {
        let folder = tempfile::tempdir().expect("a folder");
        let (base, adapter) = base_of(family, folder.path());
        let exported = |name: &str| {
            let below = folder.path().join(name);
            std::fs::create_dir(&below).expect("makes");
            let tuned = OpenedModel::open("ft:test", &base, Some(&adapter)).expect("opens");
            let merged = export(&tuned, ExportFormat::Merged, Quantization::F16, &below);
            let gguf = export(&tuned, ExportFormat::Gguf, Quantization::F16, &below);
            [merged.join("model.safetensors"), gguf.join("model.gguf")]
                .map(|file| std::fs::read(file).expect("reads"))
        };
        let wanted = exported("of-safetensors");
        std::fs::remove_file(base.join("model.safetensors")).expect("removes");
        let checkpoint = base.join("pytorch_model.bin");
        write_tensors(&checkpoint, "FloatStorage", &golden_tensors(family));
        assert!(exported("of-pytorch") == wanted, "{family}");
    }
}

/// The tensors of a GGUF file by their names, as floats, with their shapes.
fn tensors_of(path: &Path) -> BTreeMap<String, (Vec<usize>, Vec<f32>)> {
    let mut file = File::open(path).expect("opens");
    let content = Content::read(&mut file).expect("GGUF");
    let mut tensors = BTreeMap::new();
    for name in content.tensor_infos.keys() {
        let tensor = content.tensor(&mut file, name, &Device::Cpu).expect("is there");
        let tensor = tensor.dequantize(&Device::Cpu).expect("floats");
        let values = tensor.flatten_all().and_then(|all| all.to_vec1()).expect("values");
        tensors.insert(name.clone(), (tensor.dims().to_vec(), values));
    }
    tensors
}

#[test]
fn the_pairs_of_a_gguf_adapter_add_up_to_the_merged_weights_in_llama_cpps_layout() {
    for family in FAMILIES {
        let folder = tempfile::tempdir().expect("a folder");
        let (base, adapter) = base_of(family, folder.path());
        let tuned = OpenedModel::open("ft:test", &base, Some(&adapter)).expect("opens");
        let made = export(&tuned, ExportFormat::GgufLora, Quantization::F16, folder.path());
        let pairs = tensors_of(&made.join("adapter.gguf"));
        let merged = export(&tuned, ExportFormat::Gguf, Quantization::F16, folder.path());
        let merged = tensors_of(&merged.join("model.gguf"));
        // The base by the converter of the tests, which shares no code with the export.
        let (keys, plain) = gguf_writer::convert(&base, &read_json(&base.join("config.json")));
        let path = folder.path().join("base.gguf");
        gguf_writer::write(&path, &keys, &plain);
        let plain = tensors_of(&path);
        assert_eq!(merged.keys().collect::<Vec<_>>(), plain.keys().collect::<Vec<_>>(), "{family}");

        let content = Content::read(&mut File::open(made.join("adapter.gguf")).expect("opens"));
        let keys = content.expect("GGUF").metadata;
        let text = |key: &str| keys[key].to_string().expect("a text").clone();
        assert_eq!((text("general.type"), text("adapter.type")), ("adapter".into(), "lora".into()));
        let GgufValue::F32(alpha) = keys["adapter.lora.alpha"] else { panic!("not a float") };

        let mut adapted = 0;
        for (name, (shape, plain)) in &plain {
            let mut wanted = plain.clone();
            if let Some((a_shape, a)) = pairs.get(&format!("{name}.lora_a")) {
                let (b_shape, b) = &pairs[&format!("{name}.lora_b")];
                let [rank, inputs] = a_shape[..] else { panic!("{a_shape:?}") };
                assert_eq!(
                    (&b_shape[..], &shape[..]),
                    (&[shape[0], rank][..], &[shape[0], inputs][..])
                );
                for row in 0..shape[0] {
                    for column in 0..inputs {
                        let products =
                            (0..rank).map(|r| b[row * rank + r] * a[r * inputs + column]);
                        wanted[row * inputs + column] +=
                            alpha / rank as f32 * products.sum::<f32>();
                    }
                }
                adapted += 1;
            }
            let (merged_shape, merged) = &merged[name];
            assert_eq!(merged_shape, shape, "{family} {name}");
            for (merged, wanted) in merged.iter().zip(&wanted) {
                let allowed = 1e-3 * wanted.abs().max(1e-3);
                assert!((merged - wanted).abs() <= allowed, "{family} {name}: {merged} {wanted}");
            }
        }
        assert_eq!(2 * adapted, pairs.len(), "{family}: a pair belongs to no weight");
        let modelfile = std::fs::read_to_string(made.join("Modelfile")).expect("reads");
        assert!(modelfile.contains("FROM ./base\nADAPTER ./adapter.gguf\n"), "{modelfile}");
    }
}

#[test]
fn a_gguf_file_promises_no_longer_text_than_llama_cpp_computes_alike() {
    let folder = tempfile::tempdir().expect("a folder");
    let (base, adapter) = base_of("mistral", folder.path());
    let tuned = OpenedModel::open("ft:test", &base, Some(&adapter)).expect("opens");
    let made = export(&tuned, ExportFormat::Gguf, Quantization::F16, folder.path());
    let model = BaseModel::open(&made).expect("opens");
    assert_eq!(model.config["max_position_embeddings"], 14, "the sliding window");
    assert!(model.config["sliding_window"].is_null());
}

/// What is said instead of an export.
fn refused(base: &Path, adapter: Option<&Path>, format: ExportFormat) -> String {
    let out = tempfile::tempdir().expect("a folder");
    let tuned = OpenedModel::open("ft:test", base, adapter).expect("opens");
    let made = write(&tuned, &ExportOptions::new(format), out.path());
    made.expect_err("it cannot be held").to_string()
}

#[test]
fn what_a_format_cannot_hold_is_refused_by_name_with_what_to_do() {
    let folder = tempfile::tempdir().expect("a folder");
    let (base, adapter) = base_of("gemma2", folder.path());
    let change = |name: &str, change: &dyn Fn(&mut Value)| {
        let path = base.join(name);
        let mut json = read_json(&path);
        change(&mut json);
        std::fs::write(path, json.to_string()).expect("writes");
    };
    change("config.json", &|config| config["query_pre_attn_scalar"] = 20.into());
    let message = refused(&base, Some(&adapter), ExportFormat::Gguf);
    assert!(message.contains("scales attention") && message.contains("merged"), "{message}");
    change("config.json", &|config| config["query_pre_attn_scalar"] = config["head_dim"].clone());

    change("tokenizer.json", &|json| {
        json["pre_tokenizer"] = serde_json::json!({"type": "Whitespace"});
    });
    let message = refused(&base, Some(&adapter), ExportFormat::Gguf);
    assert!(message.contains("tokenizer") && message.contains("merged"), "{message}");

    for format in [ExportFormat::Peft, ExportFormat::GgufLora] {
        let message = refused(&base, None, format);
        assert!(message.contains("whole model") && message.contains("\"gguf\""), "{message}");
    }
    let other = data("golden/llama/adapter");
    let error = OpenedModel::open("ft:test", &base, Some(&other)).err().expect("another model's");
    assert!(error.to_string().contains("does not fit the base model"), "{error}");
}

#[test]
fn modules_that_are_saved_in_full_are_merged_and_no_pair_of_llama_cpps() {
    let folder = tempfile::tempdir().expect("a folder");
    let (base, adapter) = base_of("mistral", folder.path());
    let own = folder.path().join("adapter");
    std::fs::create_dir(&own).expect("makes");
    let bytes = |name| std::fs::read(adapter.join(name)).expect("it is there");
    let (mut config, mut tensors) =
        peft::read(&bytes(peft::CONFIG_FILE), &bytes(peft::WEIGHTS_FILE)).expect("an adapter");
    config.modules_to_save = Some(vec!["embed_tokens".to_owned(), "lm_head".to_owned()]);
    for (name, factor) in [("model.embed_tokens", 0.5), ("lm_head", 2.0)] {
        let weights = BaseModel::open(&base).expect("opens").weights;
        let tensor = weights.tensor(&format!("{name}.weight")).expect("is there");
        let shape = tensor.shape.clone();
        let values = tensor.into_f32().into_iter().map(|value| value * factor).collect();
        tensors.insert(format!("base_model.model.{name}.weight"), (shape, values));
    }
    peft::write(&own, &config, &tensors).expect("writes");
    let wanted = Model::load(&base, Some(&own)).logits(&TOKENS);
    let tuned = OpenedModel::open("ft:test", &base, Some(&own)).expect("opens");
    let merged = export(&tuned, ExportFormat::Merged, Quantization::F16, folder.path());
    let apart = distance(&Model::load(&merged, None).logits(&TOKENS), &wanted);
    assert!(apart < 1e-5, "{apart}");
    let message = refused(&base, Some(&own), ExportFormat::GgufLora);
    assert!(message.contains("lm_head.weight") && message.contains("\"gguf\""), "{message}");
}

/// Rewrites the safetensors file of a folder with elements of a type, and says so in its configuration.
pub fn store_as(folder: &Path, weight_type: WeightType) {
    let path = folder.join("model.safetensors");
    let tensors = peft::deserialise(&std::fs::read(&path).expect("reads")).expect("floats");
    let shapes: Vec<_> =
        tensors.iter().map(|(name, (shape, _))| (name.clone(), shape.clone())).collect();
    let values = |name: &str| Ok::<_, std::io::Error>(tensors[name].1.clone());
    hone::artifacts::model::write_weights(&path, &shapes, weight_type, values).expect("writes");
    change(&folder.join("config.json"), |config| config["dtype"] = weight_type.as_str().into());
}

/// Changes a JSON file.
pub fn change(path: &Path, change: impl Fn(&mut Value)) {
    let mut json = if path.exists() { read_json(path) } else { serde_json::json!({}) };
    change(&mut json);
    std::fs::write(path, json.to_string()).expect("writes");
}

#[test]
fn merged_weights_have_the_bases_type_or_the_requested_one_and_rounding_costs_what_the_page_says() {
    let mut largest = [0.0f32; 2];
    for family in FAMILIES {
        let folder = tempfile::tempdir().expect("a folder");
        let (base, adapter) = base_of(family, folder.path());
        store_as(&base, WeightType::Bfloat16);
        let tuned = OpenedModel::open("ft:test", &base, Some(&adapter)).expect("opens");
        let (exact, _) = merge(&tuned, Some(WeightType::Float32), folder.path());
        let wanted = Model::load(&base, Some(&adapter)).logits(&TOKENS);
        let found = Model::load(&exact, None).logits(&TOKENS);
        assert!(distance(&found, &wanted) < 1e-5, "{family}");
        let size = |folder: &Path| {
            std::fs::metadata(folder.join("model.safetensors")).expect("is there").len()
        };
        for (place, weight_type) in
            [(0, None), (0, Some(WeightType::Bfloat16)), (1, Some(WeightType::Float16))]
        {
            let (made, _) = merge(&tuned, weight_type, folder.path());
            let named = weight_type.unwrap_or(WeightType::Bfloat16);
            assert_eq!(read_json(&made.join("config.json"))["dtype"], named.as_str(), "{family}");
            assert!(size(&made) < size(&exact) * 3 / 5, "{family}");
            let apart = distance(&Model::load(&made, None).logits(&TOKENS), &wanted);
            largest[place] = largest[place].max(apart);
        }
    }
    println!("largest difference over the largest logit: bfloat16 {:.1e}", largest[0]);
    println!("largest difference over the largest logit: float16 {:.1e}", largest[1]);
    assert!(largest[0] > largest[1] && largest[0] < 0.1 && largest[1] < 0.01, "{largest:?}");

    // A number that 16 bits cannot hold is refused, not made infinite.
    let folder = tempfile::tempdir().expect("a folder");
    let (base, adapter) = base_of("llama", folder.path());
    let path = base.join("model.safetensors");
    let mut tensors = peft::deserialise(&std::fs::read(&path).expect("reads")).expect("floats");
    tensors.get_mut("model.norm.weight").expect("is there").1[0] = 7e4;
    std::fs::write(&path, peft::serialise(&tensors).expect("serialises")).expect("writes");
    let tuned = OpenedModel::open("ft:test", &base, Some(&adapter)).expect("opens");
    let weight_type = Some(WeightType::Float16);
    let options = ExportOptions { weight_type, ..ExportOptions::new(ExportFormat::Merged) };
    let out = tempfile::tempdir().expect("a folder");
    let message = write(&tuned, &options, out.path()).expect_err("too large").to_string();
    assert!(message.contains("model.norm.weight") && message.contains("\"float32\""), "{message}");
}

#[test]
fn a_merged_folder_names_every_stop_token_and_nothing_that_would_not_load() {
    let folder = tempfile::tempdir().expect("a folder");
    let (base, adapter) = base_of("llama", folder.path());
    change(&base.join("config.json"), |config| {
        config["eos_token_id"] = 0.into();
        config["architectures"] = serde_json::json!(["XForCausalLM"]);
        config["auto_map"] = serde_json::json!({"AutoConfig": "configuration_x.XConfig"});
        config["quantization_config"] = serde_json::json!({"quant_method": "bitsandbytes"});
    });
    change(&base.join("generation_config.json"), |config| {
        config["eos_token_id"] = serde_json::json!([0, 5]);
        config["temperature"] = 0.7.into();
    });
    change(&base.join("tokenizer_config.json"), |config| {
        config["eos_token"] = "<|endoftext|>".into();
        config["tokenizer_class"] = "XTokenizer".into();
        config["auto_map"] = serde_json::json!({"AutoTokenizer": ["tokenization_x.X", null]});
    });
    let tuned = OpenedModel::open("ft:test", &base, Some(&adapter)).expect("opens");
    let (made, said) = merge(&tuned, None, folder.path());
    let json = |name: &str| read_json(&made.join(name));
    let config = json("config.json");
    // <|im_end|>, which the template teaches, is 2.
    assert_eq!(config["eos_token_id"], serde_json::json!([0, 5, 2]));
    assert_eq!(config["architectures"], serde_json::json!(["LlamaForCausalLM"]));
    assert!(config.get("auto_map").is_none() && config.get("quantization_config").is_none());
    let generation = json("generation_config.json");
    assert_eq!(generation["eos_token_id"], serde_json::json!([0, 5, 2]));
    assert_eq!(generation["temperature"], 0.7);
    let tokenizer = json("tokenizer_config.json");
    assert_eq!(tokenizer["tokenizer_class"], "PreTrainedTokenizerFast");
    assert!(tokenizer.get("auto_map").is_none());
    assert_eq!(
        tokenizer["chat_template"],
        read_json(&base.join("tokenizer_config.json"))["chat_template"]
    );
    let said = said.join("\n");
    for part in [
        "config.json: \"auto_map\"",
        "\"quantization_config\" (method \"bitsandbytes\") is left out",
        "tokenizer_config.json: \"auto_map\"",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let model = BaseModel::open(&made).expect("opens");
    assert_eq!(model.tokenizer.stop_ids(), tuned.base.tokenizer.stop_ids());
}

#[test]
fn a_sentencepiece_tokenizer_keeps_its_tokens_on_the_way_into_a_gguf_file_and_back() {
    let path = data("sentencepiece.json");
    let reference: Value = read_json(&path);
    for name in ["llama", "gemma"] {
        let folder = tempfile::tempdir().expect("a folder");
        let (base, adapter) = base_of("llama", folder.path());
        // The folder's tokenizer is the one that a GGUF file of the reference is read as.
        let given =
            crate::formats::loading_gguf::sentence_piece_file(&reference[name], name == "llama");
        let read = BaseModel::open(&given.1).expect("opens");
        let files: BTreeMap<String, Vec<u8>> =
            read.companions().expect("files").into_iter().collect();
        for (name, bytes) in &files {
            std::fs::write(base.join(name), bytes).expect("writes");
        }
        grow_embedding(&base, 480);
        let tuned = OpenedModel::open("ft:test", &base, None).expect("opens");
        drop(adapter);
        let made = export(&tuned, ExportFormat::Gguf, Quantization::F16, folder.path());
        let made = BaseModel::open(&made).expect("opens");
        for case in reference[name]["cases"].as_array().expect("cases") {
            let text = case["text"].as_str().expect("a text");
            let tokens = made.tokenizer.encode(text).expect("encodes");
            let ids: Vec<u32> = tokens.iter().map(|(id, _)| *id).collect();
            assert_eq!(serde_json::json!(ids), case["ids"], "{name} {text:?}");
        }
    }
}

/// Gives the model of a folder so many rows of embedding.
fn grow_embedding(folder: &Path, rows: usize) {
    let path = folder.join("model.safetensors");
    let mut tensors = peft::deserialise(&std::fs::read(&path).expect("reads")).expect("floats");
    for (name, (shape, values)) in &mut tensors {
        if name.ends_with("embed_tokens.weight") || name == "lm_head.weight" {
            values.resize(rows * shape[1], 0.01);
            shape[0] = rows;
        }
    }
    std::fs::write(&path, peft::serialise(&tensors).expect("serialises")).expect("writes");
    let path = folder.join("config.json");
    let mut config = read_json(&path);
    config["vocab_size"] = rows.into();
    std::fs::write(path, config.to_string()).expect("writes");
}
