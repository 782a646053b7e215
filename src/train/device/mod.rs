//! The device that trains: how `auto` is resolved, and whether a requested CUDA device exists and computes. The server checks before it takes jobs, each trainer again when it loads.

pub mod memory;

use candle_core::{DType, Tensor};

use crate::device::{Device, DeviceSetting};

/// Why a device cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// This program cannot drive it.
    #[error(
        "{device} was asked for, and this hone is built without CUDA: use one that is built with \
         `--features cuda` (docker/Dockerfile.cuda does), or ask for the device cpu"
    )]
    NotBuilt {
        /// What was asked for.
        device: Device,
    },
    /// Its memory is full.
    #[error(
        "{device} has no memory left for a run: {reason}. `nvidia-smi` shows what else uses it: end that, \
         or ask for another device"
    )]
    OutOfMemory {
        /// What was asked for.
        device: Device,
        /// What the driver says.
        reason: String,
    },
    /// The machine does not have it, or it does not work.
    #[error(
        "{device} cannot be used: {reason}. See whether `nvidia-smi` shows it here, or ask for the \
         device cpu"
    )]
    Unusable {
        /// What was asked for.
        device: Device,
        /// What the driver says.
        reason: String,
    },
}

/// The device that jobs will be trained on.
///
/// # Errors
/// A CUDA device was asked for by name and cannot be used. `auto` never fails.
pub fn choose(setting: DeviceSetting) -> Result<Device, DeviceError> {
    match setting {
        DeviceSetting::Exactly(Device::Cpu) => Ok(Device::Cpu),
        DeviceSetting::Exactly(Device::Cuda(number)) => {
            probe(number)?;
            Ok(Device::Cuda(number))
        }
        DeviceSetting::Auto => match probe(0) {
            Ok(()) => Ok(Device::Cuda(0)),
            Err(DeviceError::NotBuilt { .. }) => Ok(Device::Cpu),
            Err(error) => {
                tracing::warn!(%error, "jobs are trained on the CPU");
                Ok(Device::Cpu)
            }
        },
    }
}

/// A CUDA device that is open. Candle gives each thread a stream of its own (the per-thread default stream),
/// and nothing orders the streams of two threads: what is made on the device belongs to the thread that made it.
pub struct OpenDevice {
    device: Device,
    candle: candle_core::Device,
}

/// The memory of a device, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceMemory {
    /// What is free.
    pub free: u64,
    /// All of it.
    pub total: u64,
}

impl OpenDevice {
    /// Opens the CUDA device `number`.
    ///
    /// # Errors
    /// This program is built without CUDA; the device is not there, does not work, or its memory is full.
    pub fn open(number: usize) -> Result<Self, DeviceError> {
        let device = Device::Cuda(number);
        if !candle_core::utils::cuda_is_available() {
            return Err(DeviceError::NotBuilt { device });
        }
        match candle_core::Device::new_cuda(number) {
            Ok(candle) => Ok(Self { device, candle }),
            Err(error) => Err(cannot_open(device, error_message(&error))),
        }
    }

    /// Which device.
    pub fn device(&self) -> Device {
        self.device
    }

    /// The device as candle knows it.
    pub fn candle(&self) -> &candle_core::Device {
        &self.candle
    }

    /// Its memory; `None` where it does not tell.
    ///
    /// # Errors
    /// The driver fails.
    #[cfg(feature = "cuda")]
    pub fn memory(&self) -> Result<Option<DeviceMemory>, DeviceError> {
        let ask = || -> candle_core::Result<DeviceMemory> {
            let stream = self.candle.as_cuda_device()?.cuda_stream();
            let (free, total) =
                stream.context().mem_get_info().map_err(candle_core::Error::wrap)?;
            Ok(DeviceMemory { free: free as u64, total: total as u64 })
        };
        ask().map(Some).map_err(|error| failed(self.device, error_message(&error)))
    }

    /// Its memory; `None` where it does not tell.
    ///
    /// # Errors
    /// None in a program that is built without CUDA.
    #[cfg(not(feature = "cuda"))]
    pub fn memory(&self) -> Result<Option<DeviceMemory>, DeviceError> {
        Ok(None)
    }
}

/// Lets the device compute something small: a driver that is too old for the kernels, or a device
/// that is too old for bfloat16, shows here and not in the first job.
fn probe(number: usize) -> Result<(), DeviceError> {
    let open = OpenDevice::open(number)?;
    let computed = || -> candle_core::Result<Vec<f32>> {
        let ones = Tensor::ones((2, 2), DType::BF16, open.candle())?;
        ones.matmul(&ones)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1()
    };
    let device = Device::Cuda(number);
    match computed() {
        Ok(values) if values == [2.0; 4] => Ok(()),
        Ok(values) => {
            let reason = format!("it computes 1 · 1 + 1 · 1 = {values:?}");
            Err(DeviceError::Unusable { device, reason })
        }
        Err(error) => Err(failed(device, error_message(&error))),
    }
}

/// Why `device` cannot be opened. Its context is there when cuBLAS makes its handle, which needs memory, and
/// without memory says that it is not initialised.
fn cannot_open(device: Device, reason: String) -> DeviceError {
    if reason.contains("CUBLAS_STATUS_NOT_INITIALIZED") {
        return DeviceError::OutOfMemory { device, reason };
    }
    failed(device, reason)
}

fn failed(device: Device, reason: String) -> DeviceError {
    match is_out_of_memory(&reason) {
        true => DeviceError::OutOfMemory { device, reason },
        false => DeviceError::Unusable { device, reason },
    }
}

/// Whether `reason`, which is a message of the CUDA driver, of cuBLAS or of cuRAND, says that the device's memory
/// is full.
pub fn is_out_of_memory(reason: &str) -> bool {
    ["OUT_OF_MEMORY", "ALLOC_FAILED", "ALLOCATION_FAILED"].iter().any(|text| reason.contains(text))
}

/// What went wrong, without the backtrace that candle adds where `RUST_BACKTRACE` is set: the text goes
/// to whoever owns the job.
pub fn error_message(error: &candle_core::Error) -> String {
    match error {
        candle_core::Error::WithBacktrace { inner, .. } => error_message(inner),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_device_is_told_from_one_that_is_broken() {
        let device = Device::Cuda(1);
        let full = [
            "DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")",
            "CublasError(CUBLAS_STATUS_ALLOC_FAILED)",
            "CublasError(CUBLAS_STATUS_NOT_INITIALIZED)",
            "CurandError(CURAND_STATUS_ALLOCATION_FAILED)",
        ];
        for reason in full {
            let error = cannot_open(device, reason.to_owned());
            assert!(matches!(error, DeviceError::OutOfMemory { .. }), "{reason}");
            let said = error.to_string();
            assert!(said.contains("cuda:1 has no memory left") && said.contains(reason), "{said}");
        }
        let broken = [
            "DriverError(CUDA_ERROR_NO_DEVICE, \"no CUDA-capable device is detected\")",
            "DriverError(CUDA_ERROR_INVALID_PTX, \"a PTX JIT compilation failed\")",
        ];
        for reason in broken {
            let error = cannot_open(device, reason.to_owned());
            assert!(matches!(error, DeviceError::Unusable { .. }), "{reason}");
        }
        // Once cuBLAS is there, that is no word for memory.
        let later = failed(device, "CublasError(CUBLAS_STATUS_NOT_INITIALIZED)".to_owned());
        assert!(matches!(later, DeviceError::Unusable { .. }));
    }
}
