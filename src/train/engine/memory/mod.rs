//! Memory of a run, checked before any tensor is loaded.
//!
//! [`estimate`] adds up what the engine will hold, [`available`] asks the system what is free; a run
//! that cannot fit is refused with both numbers instead of being killed in the middle.

pub mod estimate;

use self::estimate::{MemoryEstimate, Workload};
use super::load::OpenBackend;
use super::{BackendKind, TOKENS_AT_ONCE};
use crate::device::Device;
use crate::domain::error_code::ErrorCode;
use crate::domain::job::JobError;
use crate::train::backend::BackendError;
use crate::train::device::DeviceMemory;
use crate::train::device::memory::held_memory;

/// The device of a run's tensors, and its free bytes; `None` where they are unknown. It opens the device for the
/// question: a run asks the backend that it has opened ([`OpenBackend::memory`]).
pub fn free_for(backend: BackendKind) -> (Device, Option<u64>) {
    let memory = OpenBackend::open(backend).and_then(|open| open.memory());
    let memory = memory.unwrap_or_else(|error| {
        tracing::warn!(%error, "the free memory is unknown");
        None
    });
    (backend.device(), memory.map(|memory| memory.free))
}

/// Tokens of a pass over `workload`: the most that the device's memory allows, with a quarter of it to spare. They
/// follow from all of the memory and not from what happens to be free, since they decide on how sums are
/// rounded; only where these do not fit they are as few as on a CPU.
///
/// # Errors
/// As [`estimate`](estimate::estimate).
pub fn pass_tokens(
    workload: &Workload<'_>,
    memory: Option<DeviceMemory>,
) -> Result<usize, BackendError> {
    let (BackendKind::Cuda(_), Some(memory)) = (workload.backend, memory) else {
        return Ok(TOKENS_AT_ONCE);
    };
    let mut tokens = MAX_PASS_TOKENS;
    while tokens > TOKENS_AT_ONCE {
        let need = estimate::estimate_for(workload, tokens)?.total();
        if need <= memory.total / 4 * 3 {
            return Ok(if need <= memory.free { tokens } else { TOKENS_AT_ONCE });
        }
        tokens /= 2;
    }
    Ok(TOKENS_AT_ONCE)
}

/// Most tokens of a pass on a GPU.
const MAX_PASS_TOKENS: usize = 8192;

/// Bytes that a run may use for caches: half of the `free` bytes that its estimate leaves, so that other processes
/// find memory too; zero where the free bytes are unknown.
pub fn spare(need: &MemoryEstimate, free: Option<u64>) -> u64 {
    free.map_or(0, |free| free.saturating_sub(need.total()) / 2)
}

/// Why a run is not begun.
#[derive(Debug, Clone, PartialEq)]
pub struct MemoryRefusal {
    /// `out_of_memory`, with the numbers, and with what would make the run smaller.
    pub error: JobError,
    /// Whether it needs more than there is. Else others hold it now.
    pub is_lasting: bool,
    /// Bytes of the machine's own memory that it needs, where that is short.
    pub host_bytes: Option<u64>,
}

/// Refuses a run that does not fit into the memory of its device, with the numbers. A machine or device that
/// does not tell how much is free is not refused.
///
/// # Errors
/// The need is more than what is free, now or ever.
pub fn check(
    need: &MemoryEstimate,
    place: Device,
    memory: Option<DeviceMemory>,
) -> Result<(), MemoryRefusal> {
    let Some(memory) = memory.filter(|memory| need.total() > memory.free) else {
        return Ok(());
    };
    let host_bytes = (place == Device::Cpu).then(|| need.total());
    let advice = "choose a smaller base model, a shorter context_length, a smaller lora_r or a machine \
                  with more memory";
    let needs = format!("training on {place} needs about {} MiB ({need})", need.total() >> 20);
    Err(refusal(&needs, need.total(), memory, advice, host_bytes))
}

/// Refuses a run on `place`, a device of its own, whose machine has too little memory for `need` bytes.
///
/// # Errors
/// As [`check`].
pub fn check_host(
    place: Device,
    need: u64,
    memory: Option<DeviceMemory>,
) -> Result<(), MemoryRefusal> {
    let Some(memory) = memory.filter(|memory| need > memory.free) else {
        return Ok(());
    };
    let needs = format!(
        "training on {place} needs about {} MiB of the machine's own memory too, to read the model and to \
         check the trained one on the CPU",
        need >> 20
    );
    let advice = "choose a smaller base model or a machine with more memory";
    Err(refusal(&needs, need, memory, advice, Some(need)))
}

fn refusal(
    needs: &str,
    bytes: u64,
    memory: DeviceMemory,
    advice: &str,
    host_bytes: Option<u64>,
) -> MemoryRefusal {
    let is_lasting = bytes > memory.total;
    let has = match is_lasting {
        true => format!("there are {} MiB in all", memory.total >> 20),
        false => {
            let holders = match host_bytes {
                Some(_) => held_memory().map_or_else(String::new, |held| format!(" ({held})")),
                None => String::new(),
            };
            format!("{} of {} MiB are free{holders}", memory.free >> 20, memory.total >> 20)
        }
    };
    MemoryRefusal {
        error: JobError {
            code: ErrorCode::OutOfMemory,
            message: format!("{needs} and {has}: {advice}"),
            param: None,
        },
        is_lasting,
        host_bytes,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::train::model::config::ModelConfig;
    use crate::train::model::lora::LoraSettings;
    use crate::train::model::trainable::Trainable;

    #[test]
    fn passes_follow_from_the_memory_of_the_device_and_not_from_what_is_free() {
        // The shape of Llama 3.1 8B.
        let config = json!({
            "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_act": "silu",
            "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128_256,
            "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 500_000.0,
        });
        let model = ModelConfig::read(&config).expect("a configuration");
        let tuning = Trainable::Lora(LoraSettings::new(16, 32.0));
        let of = |backend, total: u64, free: u64| {
            let workload = Workload {
                model: &model,
                tuning: &tuning,
                backend,
                longest: 512,
                shared: 0,
                batch_size: 64,
            };
            let memory = DeviceMemory { total: total << 30, free: free << 30 };
            pass_tokens(&workload, Some(memory)).expect("estimates")
        };
        let cuda = BackendKind::Cuda(0);
        let (small, large) = (of(cuda, 40, 40), of(cuda, 80, 80));
        assert!(TOKENS_AT_ONCE < small && small < large, "{small} {large}");
        assert_eq!(of(cuda, 141, 141), MAX_PASS_TOKENS);
        assert_eq!(of(cuda, 24, 24), TOKENS_AT_ONCE);
        // Sums round by the pass: what else uses the device must not decide on it, unless it must.
        assert_eq!(of(cuda, 80, 70), large);
        assert_eq!(of(cuda, 80, 24), TOKENS_AT_ONCE);
        assert_eq!(of(BackendKind::Candle, 80, 80), TOKENS_AT_ONCE);
    }
}
