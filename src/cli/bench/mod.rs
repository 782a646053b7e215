//! `hone bench`: what this machine can do, measured.

mod peak;
mod serve;
mod train;

use anyhow::Context;
use clap::{Args, Subcommand, ValueEnum};

/// What to measure.
#[derive(Debug, Args)]
pub struct BenchArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Take training steps and say how long they took: LoRA with r=8 on all linear layers, AdamW.
    Train(train::TrainArgs),
    /// Say how fast a model reads prompts and writes answers.
    Serve(serve::ServeArgs),
    /// Say how fast the CPU multiplies and adds at best, on each level of its instructions.
    Peak(peak::PeakArgs),
}

/// Runs the command.
pub fn bench(args: &BenchArgs) -> anyhow::Result<()> {
    match &args.what {
        What::Train(args) => train::train(args),
        What::Serve(args) => serve::serve(args),
        What::Peak(args) => peak::peak(args),
    }
}

/// The precision of the frozen weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Precision {
    /// The fastest that the CPU has.
    Auto,
    /// 32-bit floats.
    F32,
    /// bfloat16.
    Bf16,
}

/// Starts so many threads, or one for each core; how many there are.
fn set_threads(asked: Option<u32>) -> anyhow::Result<usize> {
    if let Some(threads) = asked {
        rayon::ThreadPoolBuilder::new()
            .num_threads(threads as usize)
            .build_global()
            .context("starting the threads")?;
    }
    Ok(rayon::current_num_threads())
}

fn rounded(value: f64, digits: i32) -> f64 {
    let unit = 10f64.powi(digits);
    (value * unit).round() / unit
}

/// The processor's name.
fn cpu() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    name.map_or_else(|| std::env::consts::ARCH.to_owned(), |(_, name)| name.trim().to_owned())
}

/// A field of this process's status, in bytes.
fn status(field: &str) -> anyhow::Result<f64> {
    let text = std::fs::read_to_string("/proc/self/status").context("reading the memory in use")?;
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    let kibibytes = line.and_then(|line| line.trim().strip_suffix("kB")).map(str::trim);
    let kibibytes: f64 =
        kibibytes.and_then(|text| text.parse().ok()).context("reading the memory")?;
    Ok(kibibytes * 1024.0)
}
