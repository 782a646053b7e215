//! `hone bench serve`: how fast a model reads and writes on this machine, without HTTP around it.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, ensure};
use clap::Args;
use serde_json::{Value, json};

use super::machine::{Precision, cpu, rounded, set_threads, status};
use crate::artifacts::peft;
use crate::train::engine::{
    AttachedAdapter, BackendKind, DecodeStep, InferenceEngine, PREFILL_CHUNK, SequenceCache,
};
use crate::train::model::base_model::BaseModel;
use crate::train::model::lora::LoraSettings;
use crate::train::rng::Stream;

/// The arguments of `hone bench serve`.
#[derive(Debug, Args)]
pub(super) struct BenchServeArgs {
    /// Base model: a folder in Hugging Face layout, or a .gguf file.
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// Adapter beside it: a folder in PEFT layout.
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
    /// Tokens of each prompt.
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=131_072))]
    prompt: u32,
    /// Tokens that each text gets.
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=131_072))]
    generate: u32,
    /// Texts at once.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=256))]
    streams: u32,
    /// Threads; all cores by default.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1024))]
    threads: Option<u32>,
    /// Precision of the weights: `auto` keeps them as they are where the CPU is fast in that, `bf16`
    /// rounds them.
    #[arg(long, value_enum, default_value = "auto")]
    dtype: Precision,
    /// One JSON object instead of sentences.
    #[arg(long)]
    json: bool,
}

/// A sequence that is being generated.
struct BenchSequence {
    cache: SequenceCache,
    next: u32,
}

#[expect(clippy::print_stdout, reason = "the command's product")]
pub(super) fn serve(args: &BenchServeArgs) -> anyhow::Result<()> {
    let threads = set_threads(args.threads)?;
    let base = BaseModel::open(&args.model)?;
    let responder = match args.dtype {
        Precision::Auto => {
            InferenceEngine::load(&base.config, base.weights.as_ref(), BackendKind::Cpu)?
        }
        Precision::F32 => {
            InferenceEngine::load(&base.config, base.weights.as_ref(), BackendKind::CpuF32)?
        }
        Precision::Bf16 => InferenceEngine::load_rounded(&base.config, base.weights.as_ref())?,
    };
    let adapter = args.adapter.as_deref().map(|folder| attach(&responder, folder)).transpose()?;
    let longest = (args.prompt + args.generate) as usize;
    ensure!(
        longest <= responder.context_length(),
        "--prompt and --generate are {longest} tokens together, and the model's context is {}",
        responder.context_length()
    );

    // Pages, buffers and threads are there before anything is measured.
    let mut warm = read(&responder, adapter.as_ref(), &prompt(args, &responder, u64::MAX))?;
    write(&responder, adapter.as_ref(), std::slice::from_mut(&mut warm), 4)?;
    drop(warm);

    let began = Instant::now();
    let mut texts = Vec::new();
    for stream in 0..u64::from(args.streams) {
        texts.push(read(&responder, adapter.as_ref(), &prompt(args, &responder, stream))?);
    }
    let reading = began.elapsed().as_secs_f64();
    let began = Instant::now();
    write(&responder, adapter.as_ref(), &mut texts, args.generate)?;
    let writing = began.elapsed().as_secs_f64();

    let read_tokens = f64::from(args.streams * args.prompt);
    let written_tokens = f64::from(args.streams * args.generate);
    let weights = responder.memory_use() as f64 * f64::from(args.generate);
    let report: Value = json!({
        "backend": responder.backend_name(),
        "threads": threads,
        "prompt": args.prompt,
        "generate": args.generate,
        "streams": args.streams,
        "adapter": args.adapter.is_some(),
        "prefill_tokens_per_s": rounded(read_tokens / reading, 2),
        "decode_tokens_per_s": rounded(written_tokens / writing, 2),
        "weights_gb": rounded(responder.memory_use() as f64 / 1e9, 3),
        "weights_gb_per_s": rounded(weights / writing / 1e9, 2),
        "cache_gb": rounded(responder.cached_bytes() as f64 / 1e9, 3),
        "peak_rss_gb": rounded(status("VmHWM")? / 1e9, 3),
        "versions": {"hone": env!("CARGO_PKG_VERSION")},
        "cpu": cpu(),
    });
    if args.json {
        println!("{report}");
        return Ok(());
    }
    println!(
        "{} tokens/s read, {} tokens/s written by {} at once; weights of {} GB read at {} GB/s; peak \
         memory {} GB",
        report["prefill_tokens_per_s"],
        report["decode_tokens_per_s"],
        args.streams,
        report["weights_gb"],
        report["weights_gb_per_s"],
        report["peak_rss_gb"],
    );
    Ok(())
}

fn attach(responder: &InferenceEngine, folder: &Path) -> anyhow::Result<AttachedAdapter> {
    let bytes = |name: &str| {
        let path = folder.join(name);
        std::fs::read(&path).with_context(|| format!("reading {}", path.display()))
    };
    let (config, tensors) = peft::read(&bytes(peft::CONFIG_FILE)?, &bytes(peft::WEIGHTS_FILE)?)?;
    Ok(responder.attach(&LoraSettings::of_peft(&config), &tensors)?)
}

/// Tokens that mean nothing; another stream's are others.
fn prompt(args: &BenchServeArgs, responder: &InferenceEngine, stream: u64) -> Vec<u32> {
    let random = Stream::new(0, "bench", stream);
    let token = |index: u64| (random.bits(index) % responder.vocabulary() as u64) as u32;
    (0..u64::from(args.prompt)).map(token).collect()
}

/// A text whose prompt has been read.
fn read(
    responder: &InferenceEngine,
    adapter: Option<&AttachedAdapter>,
    prompt: &[u32],
) -> anyhow::Result<BenchSequence> {
    let mut cache = responder.new_cache()?;
    let mut logits = Vec::new();
    for input_ids in prompt.chunks(PREFILL_CHUNK) {
        let read = cache.length() + input_ids.len();
        let wanted = usize::from(read == prompt.len());
        let text = DecodeStep { adapter, cache: &mut cache, input_ids, wanted };
        logits = responder.advance(&mut [text])?.swap_remove(0);
    }
    Ok(BenchSequence { cache, next: likeliest(&logits) })
}

/// Adds `count` tokens to each text, one a step.
fn write(
    responder: &InferenceEngine,
    adapter: Option<&AttachedAdapter>,
    texts: &mut [BenchSequence],
    count: u32,
) -> anyhow::Result<()> {
    for _ in 0..count {
        let next: Vec<[u32; 1]> = texts.iter().map(|text| [text.next]).collect();
        let mut parts: Vec<DecodeStep<'_>> = Vec::with_capacity(texts.len());
        for (text, input_ids) in texts.iter_mut().zip(&next) {
            parts.push(DecodeStep { adapter, cache: &mut text.cache, input_ids, wanted: 1 });
        }
        let made = responder.advance(&mut parts)?;
        for (text, logits) in texts.iter_mut().zip(&made) {
            text.next = likeliest(logits);
        }
    }
    Ok(())
}

fn likeliest(logits: &[f32]) -> u32 {
    let mut best = (0, f32::NEG_INFINITY);
    for (token, value) in logits.iter().enumerate() {
        if *value > best.1 {
            best = (token as u32, *value);
        }
    }
    best.0
}
