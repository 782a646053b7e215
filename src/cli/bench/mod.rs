//! `hone bench`: what this machine can do, measured.

mod peak;
mod train;

use anyhow::Context;
use clap::{Args, Subcommand};

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
    /// Say how fast the CPU multiplies and adds at best, on each level of its instructions.
    Peak(peak::PeakArgs),
}

/// Runs the command.
pub fn bench(args: &BenchArgs) -> anyhow::Result<()> {
    match &args.what {
        What::Train(args) => train::train(args),
        What::Peak(args) => peak::peak(args),
    }
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
