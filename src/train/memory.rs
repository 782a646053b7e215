//! How much memory a run needs, said before anything is loaded.

use super::backend::candle;
use super::base_model::BaseModel;
use super::device;
use super::encode::EncodedFile;
use super::engine::{BackendKind, TOKENS_AT_ONCE};
use crate::device::Device;
use crate::error_code::ErrorCode;
use crate::job::JobError;

/// Refuses a run that cannot fit into the memory that is free on its device, with the numbers. A
/// machine or device that does not tell how much is free is not refused.
pub fn check(
    base: &BaseModel,
    training: &EncodedFile,
    validation: Option<&EncodedFile>,
    backend: BackendKind,
) -> Result<(), JobError> {
    let (place, free) = match backend {
        BackendKind::Cuda(number) => (Device::Cuda(number), device::free_memory(number)),
        BackendKind::Cpu | BackendKind::CpuF32 | BackendKind::Candle => (Device::Cpu, available()),
    };
    let Some(free) = free else {
        return Ok(());
    };
    let longest = training
        .all()
        .chain(validation.iter().flat_map(|file| file.all()))
        .map(|sequence| sequence.input_ids.len() as u64)
        .max()
        .unwrap_or(0);
    let needed = estimate(base, longest, backend);
    if needed <= free {
        return Ok(());
    }
    Err(JobError {
        code: ErrorCode::OutOfMemory,
        message: format!(
            "training on {place} needs about {} MiB and {} MiB are free: choose a smaller base model, \
             a shorter context_length or a machine with more memory",
            needed >> 20,
            free >> 20
        ),
        param: None,
    })
}

/// Bytes of weights (on the CPU packed for both directions), of what the forward pass keeps, and of
/// logits, with candle also of what else it makes on the way.
fn estimate(base: &BaseModel, longest: u64, backend: BackendKind) -> u64 {
    let size =
        |keys: [&str; 2]| keys.iter().find_map(|key| base.config[*key].as_u64()).unwrap_or(0);
    let parameters: u64 =
        base.weights.shapes().iter().map(|(_, shape)| shape.iter().product::<usize>() as u64).sum();
    let bytes_each = match backend {
        // Two copies of two bytes; the best precision is not known to be bfloat16 here, so count
        // the larger.
        BackendKind::Cpu | BackendKind::CpuF32 => 8,
        BackendKind::Candle => 4,
        BackendKind::Cuda(_) => 2,
    };
    let (hidden, width) = (size(["hidden_size", "n_embd"]), size(["intermediate_size", "n_inner"]));
    let layers = size(["num_hidden_layers", "n_layer"]);
    let width = if width == 0 { 4 * hidden } else { width };
    let kept_per_token = layers * (7 * hidden + 2 * width) * 4;
    let tokens = (TOKENS_AT_ONCE as u64).min(4 * longest).max(longest);
    let vocabulary = size(["vocab_size", "vocab_size"]);
    let passing = match backend {
        BackendKind::Cpu | BackendKind::CpuF32 => 256 * 4 * vocabulary,
        BackendKind::Candle | BackendKind::Cuda(_) => {
            let heads = size(["num_attention_heads", "n_head"]);
            candle::passing_bytes(heads, longest, vocabulary)
        }
    };
    parameters * bytes_each + tokens * kept_per_token + passing
}

/// Memory that can be had without swapping, in bytes.
fn available() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kibibytes: u64 = line.trim().trim_end_matches("kB").trim().parse().ok()?;
    Some(kibibytes * 1024)
}
