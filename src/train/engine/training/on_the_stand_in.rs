//! Steps on the stand-in for a CUDA device (`tests/cuda/run`): what they launch, move and hold.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::*;
use crate::train::backend::candle::{self, CandleBackend};
use crate::train::device::OpenDevice;
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

/// A model's training on the device.
struct Training {
    stand_in: StandIn,
    engine: TrainingEngine<CandleBackend>,
    config: ModelConfig,
    tuning: Trainable,
    pass_tokens: usize,
}

impl Training {
    fn load(model: &Zeros, rank: usize, pass_tokens: usize) -> Self {
        let stand_in = StandIn::open();
        let config = ModelConfig::read(&model.config).expect("a configuration");
        let tuning = Trainable::Lora(LoraSettings::new(rank, 2.0 * rank as f64));
        let backend = CandleBackend::new(stand_in.device.candle().clone())
            .with_head_rows(candle::head_rows(pass_tokens, config.vocabulary));
        let engine = TrainingEngine::load(backend, config.clone(), model, &tuning, 1)
            .expect("loads")
            .with_pass_tokens(pass_tokens);
        Self { stand_in, engine, config, tuning, pass_tokens }
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
        let workload = Workload {
            model: &self.config,
            tuning: &self.tuning,
            backend: BackendKind::Cuda(0),
            longest: lengths.iter().copied().max().expect("one"),
            shared: 0,
            batch_size: lengths.len(),
        };
        let planned = estimate_for(&workload, self.pass_tokens).expect("estimates");
        summary(&counted, lengths, planned.total())
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

fn summary(counted: &Value, lengths: &[usize], planned: u64) -> Value {
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
        "planned_bytes": planned,
    })
}

/// Lengths of chats as GSM8K has them: 60 to 330 tokens, 160 on average.
fn chats(count: usize) -> Vec<usize> {
    (0..count).map(|at| 60 + (at * 7919) % 203 + (at % 5) * 17).collect()
}

fn counts_file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/cuda_counts.json")
}

#[test]
fn the_counts_of_a_step_are_those_of_the_page() {
    let eight = [4096, 14336, 32, 8, 128_256];
    let one = [2048, 8192, 32, 8, 128_256];
    let small = [576, 1536, 9, 3, 49_152];
    let chats = chats(64);
    let mut all = serde_json::Map::new();
    let mut add = |name: &str, training: &mut Training, lengths: &[usize]| {
        let counted = training.second_step(lengths);
        println!("{name}: {counted:#}");
        let (peak, planned) = (&counted["peak_bytes"], &counted["planned_bytes"]);
        let ratio = planned.as_f64().expect("planned") / peak.as_f64().expect("peak");
        assert!((1.0..2.0).contains(&ratio), "{name}: planned {planned}, taken {peak}");
        all.insert(name.to_owned(), counted);
    };
    for (tokens, name) in [(512, "in passes of 512"), (4096, "in passes of 4096")] {
        let mut training = Training::load(&llama(30, small, true), 16, tokens);
        add(&format!("135M, 64 chats, {name}"), &mut training, &chats);
        let mut training = Training::load(&llama(16, one, true), 16, tokens);
        add(&format!("1.2B, 64 chats, {name}"), &mut training, &chats);
    }
    let mut training = Training::load(&llama(32, eight, false), 16, 4096);
    add("8B, 1 x 4096", &mut training, &[4096]);
    add("8B, 2 x 4096", &mut training, &[4096, 4096]);
    add("8B, 1 x 512", &mut training, &[512]);
    add("8B, 64 chats, in passes of 4096", &mut training, &chats);

    let all = Value::Object(all);
    if std::env::var_os("UPDATE_COUNTS").is_some() {
        let mut text = serde_json::to_string_pretty(&all).expect("JSON");
        text.push('\n');
        std::fs::write(counts_file(), text).expect("writes");
        return;
    }
    let text = std::fs::read(counts_file()).expect("reads");
    let known: Value = serde_json::from_slice(&text).expect("JSON");
    for (name, known) in known.as_object().expect("cases") {
        assert_eq!(&all[name], known, "{name}: UPDATE_COUNTS=1 writes them anew");
    }
}
