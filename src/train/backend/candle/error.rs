//! Candle's errors as those of a backend.

use crate::train::backend::BackendError;
use crate::train::device::error_message;

impl From<candle_core::Error> for BackendError {
    fn from(error: candle_core::Error) -> Self {
        let reason = error_message(&error);
        // As the CUDA driver and cuBLAS say it.
        if reason.contains("OUT_OF_MEMORY") || reason.contains("ALLOC_FAILED") {
            return Self::OutOfMemory { backend: "candle", reason };
        }
        Self::Backend { backend: "candle", reason }
    }
}
