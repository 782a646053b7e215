//! `hone bench peak`: how fast the CPU multiplies and adds at best, the measure of every kernel.

use clap::Args;
use serde_json::{Map, Value, json};

use super::machine::{cpu, rounded, set_threads};
use crate::train::backend::cpu::isa::Isa;
use crate::train::backend::cpu::peak;

/// The arguments of `hone bench peak`.
#[derive(Debug, Args)]
pub(super) struct BenchPeakArgs {
    /// Threads; all cores by default.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1024))]
    threads: Option<u32>,
    /// One JSON object instead of sentences.
    #[arg(long)]
    json: bool,
}

#[expect(clippy::print_stdout, reason = "the command's product")]
pub(super) fn peak(args: &BenchPeakArgs) -> anyhow::Result<()> {
    let threads = set_threads(args.threads)?;
    let mut levels = Map::new();
    for isa in Isa::ALL {
        if !isa.is_available() {
            continue;
        }
        let gflops_per_s = rounded(peak::measure(isa) / 1e9, 2);
        levels.insert(isa.name().to_owned(), gflops_per_s.into());
        if !args.json {
            println!("{}: {gflops_per_s} GFLOP/s", isa.name());
        }
    }
    if args.json {
        let report = json!({
            "gflops_per_s": Value::Object(levels),
            "threads": threads,
            "versions": {"hone": env!("CARGO_PKG_VERSION")},
            "cpu": cpu(),
        });
        println!("{report}");
    }
    Ok(())
}
