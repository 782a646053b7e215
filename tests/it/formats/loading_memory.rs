//! What a run needs is known before it is loaded, and it is what the run then takes.

use std::collections::BTreeMap;
use std::fs::read_to_string;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use ::safetensors::Dtype;
use ::safetensors::tensor::{TensorView, serialize_to_file};
use hone::device::Device;
use hone::domain::error_code::ErrorCode;
use hone::domain::job::{Auto, FineTuneMode};
use hone::train::data::tokenize::encode_file;
use hone::train::decoder::pack::longest_shared_prefix;
use hone::train::decoder::shapes;
use hone::train::device::DeviceMemory;
use hone::train::device::memory::available_under;
use hone::train::engine::memory::estimate::{MemoryEstimate, Workload, estimate};
use hone::train::engine::memory::{check, spare};
use hone::train::engine::{BackendKind, load};
use hone::train::model::base_model::BaseModel;
use hone::train::model::config::ModelConfig;
use hone::train::model::lora::LoraSettings;
use hone::train::model::trainable::Trainable;
use hone::train::model::weights::safetensors;
use hone::train::protocol::Progress;
use serde_json::{Value, json};

use crate::train::real_model;
use crate::train::training::Trainer;

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

fn config_of(folder: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(folder.join("config.json")).unwrap()).unwrap()
}

/// The most memory that a process has had, in bytes; `None` when it has ended.
fn peak_of(process: u32) -> Option<u64> {
    let text = read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: u64 = line.trim().trim_end_matches(" kB").parse().ok()?;
    Some(kibibytes * 1024)
}

/// Runs a trainer to its end; the most memory that its process had.
fn peak(trainer: &Trainer) -> u64 {
    let mut child = Command::new(env!("CARGO_BIN_EXE_hone"))
        .arg("trainer")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let process = child.id();
    let mut input = child.stdin.take().unwrap();
    writeln!(input, "{}", serde_json::to_string(&trainer.spec).unwrap()).unwrap();
    let watcher = std::thread::spawn(move || {
        let mut peak = 0;
        while let Some(now) = peak_of(process) {
            peak = now;
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        peak
    });
    let mut last = None;
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        last = Some(serde_json::from_str::<Progress>(&line.unwrap()).unwrap());
    }
    assert!(child.wait().unwrap().success());
    assert!(matches!(last, Some(Progress::Finished { .. })), "{last:?}");
    watcher.join().unwrap()
}

/// What the run of a trainer was said to need.
fn needed(trainer: &Trainer) -> MemoryEstimate {
    let base = BaseModel::open(&trainer.spec.base_model).unwrap();
    let model = ModelConfig::read(&base.config).unwrap();
    let file = encode_file(&trainer.spec.training_file, &base, model.context_length).unwrap();
    let values = &trainer.spec.hyperparameters;
    let Auto::Value(batch_size) = values.batch_size else { panic!("{values:?}") };
    let (longest, shared) = (file.longest(), longest_shared_prefix(file.all()));
    // The model's own weights train with candle.
    let (tuning, backend) = match (values.tuning, values.lora_r) {
        (Some(FineTuneMode::Full), _) => (Trainable::Full, BackendKind::Candle),
        (_, rank) => {
            let rank = rank.unwrap() as usize;
            (Trainable::Lora(LoraSettings::new(rank, 16.0)), BackendKind::Cpu)
        }
    };
    let batch_size = batch_size as usize;
    estimate(&Workload { model: &model, tuning: &tuning, backend, longest, shared, batch_size })
        .unwrap()
}

/// Compares what was said with what the run took beyond the `empty` process, one whose model is next
/// to nothing.
fn compare(trainer: &Trainer, name: &str, empty: u64) {
    let need = needed(trainer);
    let taken = (peak(trainer) - empty) as f64;
    let said = need.total() as f64;
    println!("{name}: {:.0} MiB taken, {:.0} said: {need}", taken / 1048576.0, said / 1048576.0);
    assert!(said >= 0.9 * taken && said <= 1.35 * taken, "{name}: {said} {taken} {need}");
}

/// A trainer of one step over ten examples of so many words, with a model of its own.
fn trainer(words: usize, rank: u32) -> Trainer {
    let mut trainer = Trainer::new();
    let mut lines = String::new();
    for number in 0..10 {
        let prompt = format!("{number} {}", "a ".repeat(words));
        let line = json!({"prompt": prompt, "completion": format!("b {number}")});
        lines.push_str(&format!("{line}\n"));
    }
    std::fs::write(&trainer.spec.training_file, lines).unwrap();
    trainer.spec.hyperparameters.n_epochs = Auto::Value(1);
    trainer.spec.hyperparameters.batch_size = Auto::Value(10);
    trainer.spec.hyperparameters.lora_r = Some(rank);
    trainer
}

/// Writes a llama of some size with random weights into the trainer's folder.
fn with_model(mut trainer: Trainer, change: impl Fn(&mut Value)) -> Trainer {
    let folder = trainer.folder.path().join("model");
    std::fs::create_dir(&folder).unwrap();
    let mut config = config_of(&data("tiny-llama"));
    change(&mut config);
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(data("tiny-llama").join(name), folder.join(name)).unwrap();
    }
    let model = ModelConfig::read(&config).unwrap();
    let mut shapes: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for module in shapes::modules(&model) {
        shapes.insert(format!("{}.weight", module.module), vec![module.outputs, module.inputs]);
    }
    for layer in 0..model.layers {
        for norm in ["input_layernorm", "post_attention_layernorm"] {
            shapes.insert(format!("model.layers.{layer}.{norm}.weight"), vec![model.hidden]);
        }
    }
    shapes.insert("model.norm.weight".to_owned(), vec![model.hidden]);
    shapes.insert("model.embed_tokens.weight".to_owned(), vec![model.vocabulary, model.hidden]);
    let most = shapes.values().map(|shape| shape.iter().product::<usize>()).max().unwrap();
    let mut state = 1u32;
    let mut bytes = Vec::with_capacity(4 * most);
    for _ in 0..most {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let value = (state >> 8) as f32 / (1u32 << 24) as f32 - 0.5;
        bytes.extend((value * 0.1).to_le_bytes());
    }
    let views: BTreeMap<String, TensorView<'_>> = shapes
        .into_iter()
        .map(|(name, shape)| {
            let length = 4 * shape.iter().product::<usize>();
            (name, TensorView::new(Dtype::F32, shape, &bytes[..length]).unwrap())
        })
        .collect();
    serialize_to_file(&views, None, &folder.join("model.safetensors")).unwrap();
    trainer.spec.base_model = folder;
    trainer
}

#[test]
fn what_a_run_takes_at_its_peak_is_what_was_said_before() {
    let empty = peak(&trainer(10, 8));
    // Mostly what is kept of the tokens, many of which the examples share.
    let activations = with_model(trainer(10, 8), |config| {
        config["hidden_size"] = 256.into();
        config["intermediate_size"] = 768.into();
        config["num_hidden_layers"] = 6.into();
        config["head_dim"] = 64.into();
        config["vocab_size"] = 2048.into();
    });
    let mut lines = String::new();
    for number in 0..10 {
        let prompt = format!("{}{}", "a ".repeat(150), "b ".repeat(10 + number));
        lines.push_str(&format!("{}\n", json!({"prompt": prompt, "completion": "c ".repeat(40)})));
    }
    std::fs::write(&activations.spec.training_file, lines).unwrap();
    compare(&activations, "activations", empty);
    // Mostly weights and logits, and an adapter of a high rank.
    let weights = with_model(trainer(10, 64), |config| {
        config["hidden_size"] = 512.into();
        config["intermediate_size"] = 1024.into();
        config["num_hidden_layers"] = 2.into();
        config["head_dim"] = 64.into();
        config["num_attention_heads"] = 8.into();
        config["vocab_size"] = 16384.into();
    });
    compare(&weights, "weights", empty);
}

#[test]
fn what_training_all_weights_takes_is_what_was_said_before() {
    let empty = peak(&trainer(10, 8));
    let mut trainer = with_model(trainer(10, 8), |config| {
        config["hidden_size"] = 256.into();
        config["intermediate_size"] = 768.into();
        config["num_hidden_layers"] = 4.into();
        config["head_dim"] = 64.into();
        config["vocab_size"] = 4096.into();
    });
    trainer.spec.hyperparameters.tuning = Some(FineTuneMode::Full);
    trainer.spec.hyperparameters.lora_r = None;
    compare(&trainer, "all weights", empty);
}

#[test]
#[ignore = "long: tests/long runs it"]
fn what_a_run_of_the_real_model_takes_is_what_was_said_before() {
    let Some(models_dir) = real_model::models_dir() else { return };
    let empty = peak(&trainer(10, 8));
    for words in [20, 100] {
        let mut trainer = trainer(words, 8);
        trainer.spec.base_model = real_model::gguf(&models_dir);
        compare(&trainer, &format!("smollm2, {words} words"), empty);
    }
}

#[test]
fn a_run_that_cannot_fit_is_refused_with_the_numbers() {
    let trainer = with_model(trainer(10, 8), |_| {});
    let need = needed(&trainer);
    let of = |free, total| Some(DeviceMemory { free, total });
    assert!(check(&need, Device::Cpu, None).is_ok());
    assert!(check(&need, Device::Cpu, of(need.total(), need.total())).is_ok());
    let large = MemoryEstimate { weights: 5000 << 20, activations: 300 << 20, ..need };
    let refused = check(&large, Device::Cpu, of(2000 << 20, 1 << 40)).unwrap_err();
    assert!(!refused.is_lasting);
    let error = refused.error;
    assert_eq!(error.code, ErrorCode::OutOfMemory);
    for words in [
        &format!(
            "training on cpu needs about {} MiB (5000 MiB of weights, 300 of",
            large.total() >> 20
        ),
        "2000 of 1048576 MiB are free",
        "context_length",
    ] {
        assert!(error.message.contains(words), "{words}: {}", error.message);
    }
    let refused = check(&large, Device::Cpu, of(2000 << 20, 3000 << 20)).unwrap_err();
    assert!(refused.is_lasting && refused.error.message.contains("3000 MiB in all"), "{refused:?}");
}

#[test]
fn what_only_makes_a_run_faster_takes_half_of_what_its_need_leaves() {
    let need = needed(&with_model(trainer(10, 8), |_| {}));
    assert_eq!(spare(&need, Some(need.total() + 1000)), 500);
    assert_eq!(spare(&need, Some(need.total() - 1)), 0);
    assert_eq!(spare(&need, None), 0);
}

#[test]
fn the_layers_and_weights_that_are_counted_are_those_that_are_loaded() {
    for family in
        ["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "gpt2", "gpt_neox"]
    {
        let folder = data("golden").join(family);
        let config = config_of(&folder);
        let model = ModelConfig::read(&config).unwrap();
        let weights = safetensors::open(&folder).unwrap();
        let lora = LoraSettings::new(8, 16.0);
        let engine = load(&config, weights.as_ref(), &lora, 0, BackendKind::CpuF32).unwrap();
        let modules = shapes::modules(&model);
        let names: Vec<String> = modules.iter().map(|module| module.module.clone()).collect();
        assert_eq!(names, engine.adapted_modules(), "{family}");
        // All that a model holds are its matrices, and norms and biases.
        let elements: u64 =
            shapes::matrices(&model).iter().map(shapes::MatrixShape::elements).sum();
        let (trainable, total) = engine.parameter_counts();
        let rest = total - trainable - elements;
        assert!(rest < 40 * model.hidden as u64, "{family}: {rest}");
        let inputs_and_outputs: usize =
            modules.iter().map(|module| module.inputs + module.outputs).sum();
        assert_eq!(trainable, 8 * inputs_and_outputs as u64, "{family}");
    }
}

/// A system whose files are written by a test.
struct System(tempfile::TempDir);

impl System {
    fn new(files: &[(&str, &str)]) -> Self {
        let system = Self(tempfile::tempdir().unwrap());
        for (name, text) in files {
            let path = system.0.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        system
    }

    fn available(&self) -> Option<u64> {
        available_under(self.0.path())
    }
}

const MACHINE: (&str, &str) =
    ("proc/meminfo", "MemTotal:       8000000 kB\nMemFree:  10 kB\nMemAvailable:    4000000 kB\n");

#[test]
fn the_limits_of_control_groups_count_beside_what_the_machine_has_free() {
    assert_eq!(System::new(&[]).available(), None);
    assert_eq!(System::new(&[MACHINE]).available(), Some(4_096_000_000));
    let group = ("proc/self/cgroup", "0::/outer/inner\n");
    let in_groups = |files: &[(&str, &str)]| {
        let mut all = vec![MACHINE, group];
        all.extend(files);
        System::new(&all).available()
    };
    // No limit, or one that leaves more.
    assert_eq!(in_groups(&[]), Some(4_096_000_000));
    let unlimited = [
        ("sys/fs/cgroup/outer/inner/memory.max", "max\n"),
        ("sys/fs/cgroup/outer/inner/memory.current", "1000\n"),
    ];
    assert_eq!(in_groups(&unlimited), Some(4_096_000_000));
    // The group's own, less what it uses, but for files that the system can drop.
    let own = [
        ("sys/fs/cgroup/outer/inner/memory.max", "1000000\n"),
        ("sys/fs/cgroup/outer/inner/memory.current", "700000\n"),
        ("sys/fs/cgroup/outer/inner/memory.stat", "anon 1\ninactive_file 200000\nactive_file 3\n"),
    ];
    assert_eq!(in_groups(&own), Some(500_000));
    // The one around it, and the base, where a container sees itself.
    let mut around = own.to_vec();
    around.push(("sys/fs/cgroup/outer/memory.max", "800000\n"));
    around.push(("sys/fs/cgroup/outer/memory.current", "750000\n"));
    assert_eq!(in_groups(&around), Some(50_000));
    let base =
        [("sys/fs/cgroup/memory.max", "90000\n"), ("sys/fs/cgroup/memory.current", "100000")];
    assert_eq!(in_groups(&base), Some(0));

    let first_version = System::new(&[
        MACHINE,
        ("proc/self/cgroup", "5:cpu,cpuacct:/x\n4:memory:/docker/abc\n"),
        ("sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes", "3000000\n"),
        ("sys/fs/cgroup/memory/docker/abc/memory.usage_in_bytes", "1000000\n"),
        ("sys/fs/cgroup/memory/docker/abc/memory.stat", "cache 5\ntotal_inactive_file 400000\n"),
        ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
        ("sys/fs/cgroup/memory/memory.usage_in_bytes", "2000000\n"),
    ]);
    assert_eq!(first_version.available(), Some(2_400_000));
}
