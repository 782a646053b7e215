//! Steps on the stand-in for a CUDA device (`tests/cuda/run`): what they launch, move and hold.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::*;
use crate::train::backend::candle::{self, CandleBackend};
use crate::train::device::{DeviceError, OpenDevice};
use crate::train::engine::BackendKind;
use crate::train::engine::memory::estimate::{Workload, estimate_for};
use crate::train::model::error::LoadError;
use crate::train::model::lora::LoraSettings;
use crate::train::model::weights::{HostTensor, TensorData};

/// A Llama whose weights are zeros.
struct Zeros {
    config: Value,
}

impl WeightSource for Zeros {
    fn shapes(&self) -> Vec<(String, Vec<usize>)> {
        let number = |key: &str| self.config[key].as_u64().expect("a number") as usize;
        let (hidden, mlp) = (number("hidden_size"), number("intermediate_size"));
        let keys = hidden / number("num_attention_heads") * number("num_key_value_heads");
        let table = vec![number("vocab_size"), hidden];
        let mut shapes = vec![
            ("model.embed_tokens.weight".to_owned(), table.clone()),
            ("model.norm.weight".to_owned(), vec![hidden]),
        ];
        if self.config["tie_word_embeddings"] != json!(true) {
            shapes.push(("lm_head.weight".to_owned(), table));
        }
        for layer in 0..number("num_hidden_layers") {
            for (name, shape) in [
                ("self_attn.q_proj", vec![hidden, hidden]),
                ("self_attn.k_proj", vec![keys, hidden]),
                ("self_attn.v_proj", vec![keys, hidden]),
                ("self_attn.o_proj", vec![hidden, hidden]),
                ("mlp.gate_proj", vec![mlp, hidden]),
                ("mlp.up_proj", vec![mlp, hidden]),
                ("mlp.down_proj", vec![hidden, mlp]),
                ("input_layernorm", vec![hidden]),
                ("post_attention_layernorm", vec![hidden]),
            ] {
                shapes.push((format!("model.layers.{layer}.{name}.weight"), shape));
            }
        }
        shapes
    }

    fn tensor(&self, name: &str) -> Result<HostTensor, LoadError> {
        let (_, shape) =
            self.shapes().into_iter().find(|(known, _)| known == name).expect("is there");
        let elements = shape.iter().product();
        Ok(HostTensor { shape, data: TensorData::F32(vec![0.0; elements]) })
    }
}

/// A Llama of so many layers: hidden, MLP, heads, key heads, vocabulary, tied.
fn llama(layers: usize, shape: [usize; 5], tied: bool) -> Zeros {
    let [hidden, mlp, heads, kv_heads, vocabulary] = shape;
    let config = json!({
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_act": "silu",
        "hidden_size": hidden, "intermediate_size": mlp, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "vocab_size": vocabulary,
        "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 500_000.0,
        "tie_word_embeddings": tied, "torch_dtype": "bfloat16",
    });
    Zeros { config }
}

/// The device and its log.
struct StandIn {
    device: OpenDevice,
    log: PathBuf,
}

impl StandIn {
    fn open() -> Self {
        let log = std::env::var_os("HONE_STAND_IN_LOG").expect("tests/cuda/run sets it");
        Self { device: OpenDevice::open(0).expect("opens"), log: log.into() }
    }

    /// What was counted since it was last asked.
    fn counted(&self) -> Value {
        self.device.memory().expect("tells");
        let text = std::fs::read_to_string(&self.log).expect("reads");
        serde_json::from_str(text.lines().last().expect("a line")).expect("JSON")
    }
}

fn lora(rank: usize) -> Trainable {
    Trainable::Lora(LoraSettings::new(rank, 2.0 * rank as f64))
}

/// What the plan says that training `model` over sequences of these lengths takes.
fn planned(model: &Zeros, rank: usize, pass_tokens: usize, lengths: &[usize]) -> u64 {
    let workload = Workload {
        model: &ModelConfig::read(&model.config).expect("a configuration"),
        tuning: &lora(rank),
        backend: BackendKind::Cuda(0),
        longest: lengths.iter().copied().max().expect("one"),
        shared: 0,
        batch_size: lengths.len(),
    };
    estimate_for(&workload, pass_tokens).expect("estimates").total()
}

/// A model's training on the device.
struct Training {
    stand_in: StandIn,
    engine: TrainingEngine<CandleBackend>,
}

impl Training {
    fn load(model: &Zeros, rank: usize, pass_tokens: usize) -> Self {
        let stand_in = StandIn::open();
        let config = ModelConfig::read(&model.config).expect("a configuration");
        let backend = CandleBackend::new(stand_in.device.candle().clone())
            .with_head_rows(candle::head_rows(pass_tokens, config.vocabulary));
        let engine = TrainingEngine::load(backend, config, model, &lora(rank), 1)
            .expect("loads")
            .with_pass_tokens(pass_tokens);
        Self { stand_in, engine }
    }

    /// A step over sequences of these lengths, all of whose tokens count.
    fn step(&mut self, lengths: &[usize], number: u64) {
        let sequences: Vec<Sequence> = lengths
            .iter()
            .enumerate()
            .map(|(at, length)| Sequence {
                input_ids: (0..*length).map(|token| ((at + token * 31) % 1000) as u32).collect(),
                loss_mask: vec![true; *length],
            })
            .collect();
        let batch: Vec<&Sequence> = sequences.iter().collect();
        let total = lengths.iter().map(|length| *length as u64 - 1).sum();
        self.engine.accumulate(&batch, MicroBatch::whole(number, total)).expect("launches");
        let rates = AdamWStep {
            learning_rate: 1e-3,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.0,
            clip: 1.0,
            step: number,
        };
        self.engine.step(&rates).expect("launches");
    }

    /// What the second of two steps takes, by class of work.
    fn second_step(&mut self, lengths: &[usize]) -> Value {
        self.step(lengths, 1);
        self.stand_in.counted();
        self.step(lengths, 2);
        let counted = self.stand_in.counted();
        summary(&counted, lengths)
    }
}

/// The class of a kernel, and the bytes that it moves for each element.
fn class(kernel: &str) -> Option<(&'static str, u64)> {
    let broadcast = kernel.ends_with(" broadcast");
    let kernel = kernel.trim_end_matches(" broadcast");
    let classes = [
        ("softmax", "softmax", 16),
        ("rmsnorm", "norm forward", 12),
        ("rope_thd", "rotation", 8),
        ("fast_", "reductions", 4),
        ("cast_u8_f32", "elementwise", 5),
        ("cast_", "casts", 6),
        ("ucopy", "copies", 8),
        ("copy2d", "copies", 8),
        ("is_", "gathers and scatters", 8),
        ("gather_", "gathers and scatters", 8),
        ("sa_", "gathers and scatters", 12),
        ("ia_", "gathers and scatters", 12),
        ("const_set", "elementwise", 4),
        ("affine", "elementwise", 8),
        ("where", "elementwise", 13),
        ("eq_", "elementwise", 9),
        ("ge_", "elementwise", 9),
        ("lt_", "elementwise", 9),
        ("u", "elementwise", 8),
        ("b", "elementwise", 12),
    ];
    let (_, class, bytes) = classes.into_iter().find(|(start, ..)| kernel.starts_with(start))?;
    // A broadcast operand is a small one.
    Some((class, if broadcast { bytes - 4 } else { bytes }))
}

fn summary(counted: &Value, lengths: &[usize]) -> Value {
    let mut classes: BTreeMap<String, [u64; 2]> = BTreeMap::new();
    let (mut launches, mut moved) = (0, 0);
    let mut flops = serde_json::Map::new();
    let of = |key: &str| [0, 1].map(|at| counted["counts"][key][at].as_u64().unwrap_or(0));
    for (key, value) in counted["counts"].as_object().expect("counts") {
        let (count, amount) =
            (value[0].as_u64().expect("a count"), value[1].as_u64().expect("an amount"));
        let (name, bytes) = match key.strip_prefix("gemm ") {
            Some(kind) if kind.ends_with(" bytes") => continue,
            Some(kind) => {
                flops.insert(kind.to_owned(), json!(amount));
                (format!("products, {kind}"), of(&format!("{key} bytes"))[1])
            }
            None if key.starts_with("up") => continue,
            None if key == "copy on the device" => ("copies".to_owned(), 2 * amount),
            None if key == "memset" => ("elementwise".to_owned(), amount),
            None => match class(key) {
                Some((class, bytes)) => (class.to_owned(), bytes * amount),
                None => continue,
            },
        };
        launches += count;
        moved += bytes;
        let entry = classes.entry(name).or_default();
        *entry = [entry[0] + count, entry[1] + bytes];
    }
    assert_eq!(of("launch on another stream")[0], 0);
    assert_eq!(of("launch by another thread")[0], 0);
    assert_eq!(of("wait for an event")[0], 0, "one stream waits for no event");
    assert_eq!(of("context")[0], 0);
    let small = of("up (at most 512 bytes)");
    let large = of("up");
    json!({
        "tokens": lengths.iter().sum::<usize>(),
        "launches": launches,
        "bytes_moved": moved,
        "flops": flops,
        "classes": classes,
        "small_uploads": small[0],
        "bytes_up": small[1] + large[1],
        "reads": of("down")[0],
        "bytes_down": of("down")[1],
        "allocations": of("allocate")[0],
        "events": of("event")[0],
        "peak_bytes": counted["peak"],
    })
}

/// Lengths of chats about as GSM8K has them: 60 to 246 tokens, 156 on average, neighbours of about one length.
fn chats(count: usize) -> Vec<usize> {
    (0..count).map(|at| 60 + (at * 7919) % 203 + (at % 5) * 17).collect()
}

fn counts_file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/cuda_counts.json")
}

/// Everything that a run does with an engine.
fn exercise(engine: &mut TrainingEngine<CandleBackend>) {
    transfers::step(engine, 1);
    let sequences = transfers::sequences();
    let batch: Vec<&Sequence> = sequences.iter().collect();
    engine.evaluate(&batch).expect("launches");
    engine.log_probabilities(&batch, true).expect("launches");
    engine.logits(&sequences[0].input_ids).expect("launches");
    engine.generate_greedily(&sequences[1].input_ids, 3, &[], true).expect("launches");
    // Both answers to one prompt, which they share.
    let prompt: Vec<u32> = (0..30).collect();
    let answer = |own: u32| Sequence {
        input_ids: prompt.iter().copied().chain([own, own + 1]).collect(),
        loss_mask: (0..32).map(|at| at >= 30).collect(),
    };
    let (chosen, rejected) = (answer(50), answer(60));
    let pair = PreferencePair { chosen: &chosen, rejected: &rejected, reference: [-1.0, -1.0] };
    engine.accumulate_preferences(&[pair], 0.1, MicroBatch::whole(2, 1)).expect("launches");
    let (first, second) = engine.moments().expect("reads");
    engine.set_moments(&first, &second).expect("fits");
    let trained = engine.trainable_tensors().expect("reads");
    engine.set_trainable_tensors(&trained).expect("fits");
    assert_eq!(engine.gradients().expect("reads").len(), trained.len());
}

#[test]
fn every_family_and_method_launches_what_a_device_takes() {
    let stand_in = StandIn::open();
    let backend = || CandleBackend::new(stand_in.device.candle().clone());
    let families = [
        "llama",
        "llama3_rope",
        "mistral",
        "gemma2",
        "gemma3_text",
        "qwen2",
        "qwen3",
        "phi3",
        "gpt2",
        "gpt_neox",
    ];
    for family in families {
        for tuning in
            [transfers::lora(0.0), transfers::lora(0.1), Trainable::Full, Trainable::LastLayers(1)]
        {
            println!("{family} {tuning:?}");
            exercise(&mut transfers::engine(family, 2, &tuning, backend()));
        }
    }
    // A rope that turns nothing has an empty table.
    let tuning = transfers::lora(0.0);
    let nothing = |config: &mut Value| config["rotary_pct"] = json!(0.01);
    exercise(&mut transfers::changed_engine("gpt_neox", 2, &tuning, backend(), nothing));
}

#[test]
fn a_full_device_is_out_of_memory_when_it_is_opened_and_when_it_computes() {
    let stand_in = StandIn::open();
    let floats = |bytes: u64| {
        let elements = (bytes / 4) as usize;
        candle_core::Tensor::zeros(elements, candle_core::DType::F32, stand_in.device.candle())
    };
    let memory = stand_in.device.memory().expect("tells").expect("a number");
    let error = BackendError::from(floats(memory.free + 4096).expect_err("too much"));
    assert!(matches!(error, BackendError::OutOfMemory { .. }), "{error}");
    // What is left is too little for the handle of cuBLAS.
    let held = floats(memory.free - (1 << 20)).expect("it fits");
    match OpenDevice::open(0) {
        Err(DeviceError::OutOfMemory { .. }) => drop(held),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("it was opened"),
    }
    OpenDevice::open(0).expect("there is room again");
}

/// What a model of `layers` layers takes, from what models of two and of four take: each layer takes the same.
fn scaled(two: &Value, four: &Value, layers: u64) -> Value {
    match (two, four) {
        (Value::Object(two), Value::Object(four)) => {
            let scaled = four.iter().map(|(key, four)| {
                let two = two.get(key).unwrap_or_else(|| panic!("{key} is in one of them"));
                (key.clone(), scaled(two, four, layers))
            });
            Value::Object(scaled.collect())
        }
        (Value::Array(two), Value::Array(four)) => {
            two.iter().zip(four).map(|(two, four)| scaled(two, four, layers)).collect()
        }
        _ => {
            let [two, four] = [two, four].map(|value| value.as_u64().expect("a number"));
            json!(two + (layers - 2) * (four - two) / 2)
        }
    }
}

/// Counts the steps of a model (see [`llama`]) over sequences of these lengths in passes of so many tokens, and
/// compares them with the page's.
fn check_counts(
    (model, layers, shape, tied): (&str, usize, [usize; 5], bool),
    cases: &[(&str, usize, Vec<usize>)],
) {
    let text = std::fs::read_to_string(counts_file()).unwrap_or_else(|_| "{}".to_owned());
    let mut known: Value = serde_json::from_str(&text).expect("JSON");
    for (what, pass_tokens, lengths) in cases {
        let name = format!("{model}, {what}");
        let [two, three, four] = [2, 3, 4].map(|layers| {
            Training::load(&llama(layers, shape, tied), 16, *pass_tokens).second_step(lengths)
        });
        assert_eq!(scaled(&two, &four, 3), three, "{name}: a layer takes what the last one took");
        let mut counted = scaled(&two, &four, layers as u64);
        let planned = planned(&llama(layers, shape, tied), 16, *pass_tokens, lengths);
        counted["planned_bytes"] = json!(planned);
        println!("{name}: {counted:#}");
        let ratio = planned as f64 / counted["peak_bytes"].as_f64().expect("a number");
        assert!((1.0..2.0).contains(&ratio), "{name}: planned {ratio} of what was taken");
        if std::env::var_os("UPDATE_COUNTS").is_some() {
            known[&name] = counted;
            let mut text = serde_json::to_string_pretty(&known).expect("JSON");
            text.push('\n');
            std::fs::write(counts_file(), text).expect("writes");
        } else {
            assert_eq!(known[&name], counted, "{name}: UPDATE_COUNTS=1 writes it anew");
        }
    }
}

#[test]
fn the_counts_of_135m_are_those_of_the_page() {
    let cases = [
        ("64 chats in passes of 512", 512, chats(64)),
        ("64 chats in passes of 4096", 4096, chats(64)),
    ];
    check_counts(("135M", 30, [576, 1536, 9, 3, 49_152], true), &cases);
}

#[test]
fn the_counts_of_1_2b_are_those_of_the_page() {
    let cases = [
        ("64 chats in passes of 512", 512, chats(64)),
        ("64 chats in passes of 4096", 4096, chats(64)),
    ];
    check_counts(("1.2B", 16, [2048, 8192, 32, 8, 128_256], true), &cases);
}

#[test]
#[ignore = "long: it loads a shape of 8B; tests/cuda/run --ignored runs it"]
fn the_counts_of_8b_are_those_of_the_page() {
    let cases = [
        ("1 x 4096", 4096, vec![4096]),
        ("2 x 4096", 4096, vec![4096, 4096]),
        ("64 chats in passes of 4096", 4096, chats(64)),
    ];
    check_counts(("8B", 32, [4096, 14336, 32, 8, 128_256], false), &cases);
}
