//! Candle's errors as those of a backend.

use crate::train::backend::BackendError;
use crate::train::device::{error_message, is_out_of_memory};

impl From<candle_core::Error> for BackendError {
    fn from(error: candle_core::Error) -> Self {
        let reason = error_message(&error);
        if is_out_of_memory(&reason) {
            return Self::OutOfMemory { backend: "candle", reason };
        }
        Self::Backend { backend: "candle", reason }
    }
}
