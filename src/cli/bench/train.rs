//! `hone bench train`: how fast training is on this machine, and what it needs, on work like a job's.
//!
//! The fields of `--json` are those that a PyTorch training loop's script would print of itself
//! (`tokens_per_s`, `peak_rss_gb`, `losses` …), so that both can be read by the same program.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use super::machine::{Precision, cpu, rounded, set_threads, status};
use super::work::{BenchMode, batch_of_file, chat_sequences, random_batch, tokenised_sequences};
use crate::device::Device;
use crate::train::backend::AdamWStep;
use crate::train::backend::cpu::isa::Isa;
use crate::train::data::sequence::Sequence;
use crate::train::decoder::pack::longest_shared_prefix;
use crate::train::engine::memory;
use crate::train::engine::memory::estimate::{Workload, estimate};
use crate::train::engine::{
    BackendKind, Engine, LossSums, MicroBatch, load, load_in_f32, on_compute_thread,
};
use crate::train::model::base_model::BaseModel;
use crate::train::model::config::ModelConfig;
use crate::train::model::flops::ModelFlops;
use crate::train::model::lora::{LoraSettings, LoraTarget};
use crate::train::model::trainable::Trainable;

/// What computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum BackendName {
    /// hone's own kernels.
    Cpu,
    /// Plain candle operations.
    Candle,
    /// Candle on the first CUDA device; `CUDA_VISIBLE_DEVICES` makes another one the first.
    Cuda,
}

/// The arguments of `hone bench train`.
#[derive(Debug, Args)]
pub(super) struct BenchTrainArgs {
    /// Base model: a folder in Hugging Face layout, or a .gguf file.
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// The work.
    #[arg(long, value_enum, default_value = "dense")]
    mode: BenchMode,
    /// Training file of the modes chat and tokens (JSONL).
    #[arg(long, value_name = "FILE",
        required_if_eq_any([("mode", "chat"), ("mode", "tokens")]))]
    data: Option<PathBuf>,
    /// Examples in a step. With several numbers (1,2) the steps are taken and reported for each of them, from the
    /// same beginning, and the model is loaded once.
    #[arg(long, default_value = "4", value_delimiter = ',',
        value_parser = clap::value_parser!(u32).range(1..=256))]
    batch: Vec<u32>,
    /// Tokens of a sequence in dense mode, most tokens of an example in the other modes.
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(2..=131_072))]
    seq: u32,
    /// Steps.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    steps: u32,
    /// First steps that are left out of the timing.
    #[arg(long, default_value_t = 2)]
    warmup_steps: u32,
    /// Threads; all cores by default.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1024))]
    threads: Option<u32>,
    /// What computes.
    #[arg(long, value_enum, default_value = "cpu")]
    backend: BackendName,
    /// Precision of the frozen weights.
    #[arg(long, value_enum, default_value = "auto")]
    dtype: Precision,
    /// Rank of the LoRA matrices; alpha is twice as much.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=256))]
    rank: u32,
    /// Adapts the last so many blocks alone.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    lora_layers: Option<u32>,
    /// One JSON object instead of sentences.
    #[arg(long)]
    json: bool,
}

/// What the steps ran on.
struct BenchSetup {
    backend: &'static str,
    dtype: &'static str,
    threads: usize,
    /// Bytes.
    rss_after_load: f64,
    /// From the start of the process to the model ready for its first step.
    loaded: Duration,
    /// Trained parameters.
    trainable: u64,
}

/// The measurements of a step.
struct StepMeasurement {
    loss: f64,
    grad_norm: f64,
    took: Duration,
    rows: usize,
    tokens: usize,
    loss_tokens: u64,
    /// Tokens for which the frozen layers were not computed again.
    spared: u64,
    flops: f64,
}

pub(super) fn train(args: &BenchTrainArgs) -> anyhow::Result<()> {
    let threads = set_threads(args.threads)?;
    // All of it on one thread: on a CUDA device each thread has a stream of its own, and nothing orders what is
    // loaded on one before what is computed on another.
    on_compute_thread(|| train_with(args, threads))
}

fn train_with(args: &BenchTrainArgs, threads: usize) -> anyhow::Result<()> {
    let base = BaseModel::open(&args.model)?;
    let config = ModelConfig::read(&base.config)?;
    let lora = settings(args, &config)?;
    let sequences = match (&args.data, args.mode) {
        (Some(path), BenchMode::Chat) => chat_sequences(path, &base, args.seq as usize)?,
        (Some(path), BenchMode::Tokens) => tokenised_sequences(path, args.seq as usize)?,
        (None, _) | (Some(_), BenchMode::Dense) => Vec::new(),
    };
    let mut engine = open_engine(args, &base, &config, &lora, &sequences)?;
    let setup = BenchSetup {
        backend: engine.backend_name(),
        dtype: match (args.backend, args.dtype) {
            (BackendName::Cuda, Precision::Auto | Precision::Bf16) => "bf16",
            _ if engine.backend_name().contains("bf16") => "bf16",
            _ => "fp32",
        },
        threads,
        rss_after_load: status("VmRSS")?,
        loaded: process_age()?,
        trainable: engine.parameter_counts().0,
    };
    let beginning = engine.trainable_tensors()?;
    let (first_moment, second_moment) = engine.moments()?;
    for (index, &batch_size) in args.batch.iter().enumerate() {
        if index > 0 {
            engine.set_trainable_tensors(&beginning)?;
            engine.set_moments(&first_moment, &second_moment)?;
        }
        let records = take_steps(args, engine.as_mut(), &config, &sequences, batch_size)?;
        print_report(args, &report(args, batch_size, &records, &setup)?);
    }
    Ok(())
}

/// The measurements of each step with batches of `batch_size`.
#[expect(clippy::print_stdout, reason = "the command's product")]
fn take_steps(
    args: &BenchTrainArgs,
    engine: &mut dyn Engine,
    config: &ModelConfig,
    sequences: &[Sequence],
    batch_size: u32,
) -> anyhow::Result<Vec<StepMeasurement>> {
    let cost = engine.cost();
    let mut records = Vec::new();
    for step in 0..u64::from(args.steps) {
        let batch = match args.mode {
            BenchMode::Dense => random_batch(batch_size, args.seq, config.vocabulary, step),
            BenchMode::Chat | BenchMode::Tokens => batch_of_file(sequences, batch_size, step),
        };
        let record = take_step(engine, &batch, step + 1, &cost)?;
        if !args.json {
            println!(
                "step {}: loss {:.5}, norm {:.4}, {:.3} s, {:.1} tokens/s",
                step + 1,
                record.loss,
                record.grad_norm,
                record.took.as_secs_f64(),
                record.tokens as f64 / record.took.as_secs_f64()
            );
        }
        records.push(record);
    }
    Ok(records)
}

#[expect(clippy::print_stdout, reason = "the command's product")]
fn print_report(args: &BenchTrainArgs, report: &Value) {
    if args.json {
        println!("{report}");
        return;
    }
    println!(
        "{} tokens/s, {} of them supervised; a step takes {} s; {:.1} GFLOP/s; peak memory {} GB; {} s from \
         the start to the first step",
        report["tokens_per_s"],
        report["loss_tokens_per_s"],
        report["median_step_s"],
        report["gflops_per_s"].as_f64().unwrap_or_default(),
        report["peak_rss_gb"],
        report["load_s"],
    );
}

/// The model with a fresh adapter, on what is asked for.
fn open_engine(
    args: &BenchTrainArgs,
    base: &BaseModel,
    config: &ModelConfig,
    lora: &LoraSettings,
    sequences: &[Sequence],
) -> anyhow::Result<Box<dyn Engine>> {
    let weights = base.weights.as_ref();
    if (args.backend, args.dtype) == (BackendName::Cuda, Precision::F32) {
        let tuning = Trainable::Lora(lora.clone());
        return Ok(load_in_f32(&base.config, weights, &tuning, 0, Device::Cuda(0))?);
    }
    let kind = backend(args.backend, args.dtype)?;
    let spare = spare(args, config, lora, kind, sequences)?;
    let mut engine = load(&base.config, weights, lora, 0, kind)?;
    engine.set_frozen_cache_budget(spare);
    Ok(engine)
}

fn backend(name: BackendName, precision: Precision) -> anyhow::Result<BackendKind> {
    Ok(match (name, precision) {
        (BackendName::Candle, Precision::Bf16) => {
            bail!("the candle backend computes in 32-bit floats on the CPU: leave --dtype out")
        }
        (BackendName::Candle, _) => BackendKind::Candle,
        (BackendName::Cuda, _) => BackendKind::Cuda(0),
        (BackendName::Cpu, Precision::F32) => BackendKind::CpuF32,
        (BackendName::Cpu, Precision::Auto) => BackendKind::Cpu,
        (BackendName::Cpu, Precision::Bf16) => match Isa::choose().map_err(anyhow::Error::msg)? {
            Isa::Bf16 => BackendKind::Cpu,
            other => bail!(
                "this CPU (or HONE_CPU) has no bfloat16 instructions, its level is {:?}: use --dtype \
                 auto or f32",
                other.name()
            ),
        },
    })
}

fn settings(args: &BenchTrainArgs, config: &ModelConfig) -> anyhow::Result<LoraSettings> {
    let mut lora = LoraSettings::new(args.rank as usize, f64::from(2 * args.rank));
    if let Some(count) = args.lora_layers {
        let layers = config.layers as u32;
        if count > layers {
            bail!("--lora-layers is {count}, and the model has {layers} blocks");
        }
        lora.target =
            LoraTarget { layers: Some((layers - count..layers).collect()), modules: None };
    }
    Ok(lora)
}

/// Memory for the outputs of frozen layers, as in a job. Random sequences never repeat.
fn spare(
    args: &BenchTrainArgs,
    config: &ModelConfig,
    lora: &LoraSettings,
    kind: BackendKind,
    sequences: &[Sequence],
) -> anyhow::Result<u64> {
    if args.mode == BenchMode::Dense {
        return Ok(0);
    }
    let need = estimate(&Workload {
        model: config,
        tuning: &Trainable::Lora(lora.clone()),
        backend: kind,
        longest: args.seq as usize,
        shared: longest_shared_prefix(sequences.iter()),
        batch_size: args.batch.iter().copied().max().unwrap_or(1) as usize,
    })?;
    Ok(memory::spare(&need, memory::free_for(kind).1))
}

fn take_step(
    engine: &mut dyn Engine,
    batch: &[Sequence],
    step: u64,
    cost: &ModelFlops,
) -> anyhow::Result<StepMeasurement> {
    let sequences: Vec<&Sequence> = batch.iter().collect();
    let loss_tokens: u64 = sequences.iter().map(|sequence| sequence.targets()).sum();
    let spared_before = engine.frozen_cache().hit_tokens;
    let began = Instant::now();
    let sums = engine.accumulate(&sequences, MicroBatch::whole(step, loss_tokens))?;
    let grad_norm = engine.step(&AdamWStep {
        learning_rate: 2e-4,
        beta1: 0.9,
        beta2: 0.999,
        epsilon: 1e-8,
        weight_decay: 0.0,
        clip: 1.0,
        step,
    })?;
    let took = began.elapsed();
    let loss = LossSums::total(&sums).loss / loss_tokens.max(1) as f64;
    let tokens: usize = batch.iter().map(|sequence| sequence.input_ids.len()).sum();
    let spared = engine.frozen_cache().hit_tokens - spared_before;
    let mut flops = 0.0;
    for sequence in batch {
        let share = spared as f64 / tokens as f64;
        flops += cost.of_training(sequence.length()) - share * cost.of_frozen(sequence.length());
    }
    Ok(StepMeasurement {
        loss,
        grad_norm,
        took,
        rows: batch.len(),
        tokens,
        loss_tokens,
        spared,
        flops,
    })
}

/// The measurements, in the fields of the PyTorch script and a few of hone's own.
fn report(
    args: &BenchTrainArgs,
    batch_size: u32,
    records: &[StepMeasurement],
    setup: &BenchSetup,
) -> anyhow::Result<Value> {
    let warm_up = (args.warmup_steps as usize).min(records.len() - 1);
    let timed = &records[warm_up..];
    let seconds: f64 = timed.iter().map(|record| record.took.as_secs_f64()).sum();
    let per_second = |count: f64| rounded(count / seconds, 2);
    let sum = |of: fn(&StepMeasurement) -> f64| timed.iter().map(of).sum::<f64>();
    let mut took: Vec<f64> = timed.iter().map(|record| record.took.as_secs_f64()).collect();
    took.sort_by(f64::total_cmp);
    let median = f64::midpoint(took[(took.len() - 1) / 2], took[took.len() / 2]);
    let losses: Vec<f64> = records.iter().map(|record| rounded(record.loss, 6)).collect();
    let is_dense = args.mode == BenchMode::Dense;
    Ok(json!({
        "mode": args.mode.name(),
        "backend": setup.backend,
        "dtype": setup.dtype,
        "adapter_dtype": "fp32",
        "threads": setup.threads,
        "batch": batch_size,
        "lora_r": args.rank,
        "seq_len": is_dense.then_some(args.seq),
        "max_len": (!is_dense).then_some(args.seq),
        "steps": records.len(),
        "timed_steps": timed.len(),
        "timed_s": rounded(seconds, 6),
        "timed_tokens": timed.iter().map(|record| record.tokens).sum::<usize>(),
        "timed_loss_tokens": timed.iter().map(|record| record.loss_tokens).sum::<u64>(),
        "compile": false,
        "gradient_checkpointing": false,
        "tokens_per_s": per_second(sum(|record| record.tokens as f64)),
        "loss_tokens_per_s": per_second(sum(|record| record.loss_tokens as f64)),
        "examples_per_s": rounded(sum(|record| record.rows as f64) / seconds, 4),
        "frozen_tokens_spared": timed.iter().map(|record| record.spared).sum::<u64>(),
        "gflops_per_s": per_second(sum(|record| record.flops) / 1e9),
        "median_step_s": rounded(median, 4),
        "first_step_s": rounded(records[0].took.as_secs_f64(), 3),
        "load_s": rounded(setup.loaded.as_secs_f64(), 3),
        "peak_rss_gb": rounded(status("VmHWM")? / 1e9, 3),
        "rss_after_load_gb": rounded(setup.rss_after_load / 1e9, 3),
        "trainable_params": setup.trainable,
        "losses": losses,
        "versions": {"hone": env!("CARGO_PKG_VERSION")},
        "cpu": cpu(),
    }))
}

/// How long this process has run, to a hundredth of a second: the time that the kernel took to start
/// it counts too.
fn process_age() -> anyhow::Result<Duration> {
    // Of `USER_HZ`, which is the same on every architecture that hone runs on.
    const TICKS_PER_SECOND: f64 = 100.0;
    let stat = std::fs::read_to_string("/proc/self/stat").context("reading the start time")?;
    let uptime = std::fs::read_to_string("/proc/uptime").context("reading the time since boot")?;
    // Field 22; the second is the name, in parentheses, and may hold blanks.
    let started = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(19));
    let started: f64 =
        started.and_then(|ticks| ticks.parse().ok()).context("reading the start time")?;
    let now = uptime.split_whitespace().next().and_then(|seconds| seconds.parse::<f64>().ok());
    let now = now.context("reading the time since boot")?;
    Ok(Duration::from_secs_f64((now - started / TICKS_PER_SECOND).max(0.0)))
}
