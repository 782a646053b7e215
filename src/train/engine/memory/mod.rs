//! Memory of a run, checked before any tensor is loaded.
//!
//! [`estimate`] adds up what the engine will hold, [`available`] asks the system what is free; a run
//! that cannot fit is refused with both numbers instead of being killed in the middle.

pub mod estimate;

use self::estimate::MemoryEstimate;
use super::BackendKind;
use super::load::OpenBackend;
use crate::device::Device;
use crate::domain::error_code::ErrorCode;
use crate::domain::job::JobError;

/// The device of a run's tensors, and its free bytes; `None` where they are unknown. It opens the device for the
/// question: a run asks the backend that it has opened ([`OpenBackend::free_memory`]).
pub fn free_for(backend: BackendKind) -> (Device, Option<u64>) {
    let free = OpenBackend::open(backend).and_then(|open| open.free_memory());
    let free = free.unwrap_or_else(|error| {
        tracing::warn!(%error, "the free memory is unknown");
        None
    });
    (backend.device(), free)
}

/// Bytes that a run may use for caches: half of the `free` bytes that its estimate leaves, so that other processes
/// find memory too; zero where the free bytes are unknown.
pub fn spare(need: &MemoryEstimate, free: Option<u64>) -> u64 {
    free.map_or(0, |free| free.saturating_sub(need.total()) / 2)
}

/// Refuses a run that cannot fit into the `free` bytes of its device, with the numbers. A machine or
/// device that does not tell how much is free is not refused.
///
/// # Errors
/// `out_of_memory`, with what would make the run smaller.
pub fn check(need: &MemoryEstimate, (place, free): (Device, Option<u64>)) -> Result<(), JobError> {
    let Some(free) = free.filter(|free| need.total() > *free) else {
        return Ok(());
    };
    Err(JobError {
        code: ErrorCode::OutOfMemory,
        message: format!(
            "training on {place} needs about {} MiB ({need}) and {} MiB are free: choose a smaller \
             base model, a shorter context_length, a smaller lora_r or a machine with more memory",
            need.total() >> 20,
            free >> 20
        ),
        param: None,
    })
}

/// Refuses a run on `place`, a device of its own, whose machine has too little memory: `need` bytes, where `free`
/// are free.
///
/// # Errors
/// `out_of_memory`, with both numbers.
pub fn check_host(place: Device, need: u64, free: Option<u64>) -> Result<(), JobError> {
    let Some(free) = free.filter(|free| need > *free) else {
        return Ok(());
    };
    Err(JobError {
        code: ErrorCode::OutOfMemory,
        message: format!(
            "training on {place} needs about {} MiB of the machine's own memory too, to read the model \
             and to check the trained one on the CPU, and {} MiB are free: choose a smaller base model or \
             a machine with more memory",
            need >> 20,
            free >> 20
        ),
        param: None,
    })
}
