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

/// Opens a CUDA device. Candle gives each thread that computes a stream of its own and waits for none of
/// the others, so what is made on the device belongs to one thread.
pub fn open(number: usize) -> Result<candle_core::Device, DeviceError> {
    let device = Device::Cuda(number);
    if !candle_core::utils::cuda_is_available() {
        return Err(DeviceError::NotBuilt { device });
    }
    candle_core::Device::new_cuda(number).map_err(|error| unusable(device, &error))
}

/// Free bytes of the device's memory; `None` where it does not tell.
#[cfg(feature = "cuda")]
pub fn free_memory(number: usize) -> Option<u64> {
    let device = open(number).ok()?;
    let stream = device.as_cuda_device().ok()?.cuda_stream();
    let (free, _total) = stream.context().mem_get_info().ok()?;
    u64::try_from(free).ok()
}

/// Free bytes of the device's memory; `None` where it does not tell.
#[cfg(not(feature = "cuda"))]
pub fn free_memory(_number: usize) -> Option<u64> {
    None
}

/// Lets the device compute something small: a driver that is too old for the kernels, or a device
/// that is too old for bfloat16, shows here and not in the first job.
fn probe(number: usize) -> Result<(), DeviceError> {
    let device = open(number)?;
    let computed = || -> candle_core::Result<Vec<f32>> {
        let ones = Tensor::ones((2, 2), DType::BF16, &device)?;
        ones.matmul(&ones)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1()
    };
    let device = Device::Cuda(number);
    match computed() {
        Ok(values) if values == [2.0; 4] => Ok(()),
        Ok(values) => {
            let reason = format!("it computes 1 · 1 + 1 · 1 = {values:?}");
            Err(DeviceError::Unusable { device, reason })
        }
        Err(error) => Err(unusable(device, &error)),
    }
}

fn unusable(device: Device, error: &candle_core::Error) -> DeviceError {
    DeviceError::Unusable { device, reason: error_message(error) }
}

/// What went wrong, without the backtrace that candle adds where `RUST_BACKTRACE` is set: the text goes
/// to whoever owns the job.
pub fn error_message(error: &candle_core::Error) -> String {
    match error {
        candle_core::Error::WithBacktrace { inner, .. } => error_message(inner),
        other => other.to_string(),
    }
}
