//! What the benchmarks share: threads, the processor, the memory of this process.

use anyhow::Context;
use clap::ValueEnum;

/// The precision of the frozen weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Precision {
    /// The fastest that the CPU has.
    Auto,
    /// 32-bit floats.
    F32,
    /// bfloat16.
    Bf16,
}

/// Sets the number of threads, one for each core by default; the number of threads.
pub(super) fn set_threads(requested: Option<u32>) -> anyhow::Result<usize> {
    if let Some(threads) = requested {
        rayon::ThreadPoolBuilder::new()
            .num_threads(threads as usize)
            .build_global()
            .context("starting the threads")?;
    }
    Ok(rayon::current_num_threads())
}

pub(super) fn rounded(value: f64, digits: i32) -> f64 {
    let unit = 10f64.powi(digits);
    (value * unit).round() / unit
}

/// The processor's name.
pub(super) fn cpu() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    name.map_or_else(|| std::env::consts::ARCH.to_owned(), |(_, name)| name.trim().to_owned())
}

/// A field of this process's status, in bytes.
pub(super) fn status(field: &str) -> anyhow::Result<f64> {
    let text = std::fs::read_to_string("/proc/self/status").context("reading the memory in use")?;
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    let kibibytes = line.and_then(|line| line.trim().strip_suffix("kB")).map(str::trim);
    let kibibytes: f64 =
        kibibytes.and_then(|text| text.parse().ok()).context("reading the memory")?;
    Ok(kibibytes * 1024.0)
}
