//! Host–device transfers: all of them go through here and are counted.
//!
//! Reading from the device makes the host wait for all work that the device was given before, so a training
//! step must not do it on the way. One test (`transfers`, in the engine) counts the transfers of a step;
//! another (in `tests`) checks that no other file of this folder makes tensors of host values or reads one.

use std::cell::Cell;
use std::thread::ThreadId;

use candle_core::{DType, Device, Shape, Tensor, WithDType};
use half::bf16;
use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;

use crate::train::backend::{BackendError, Outcome};

/// Transfers in each direction, and their bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TransferCounts {
    /// From the host to the device.
    pub to_device: u64,
    /// From the device to the host, which waits.
    pub to_host: u64,
    /// Bytes to the device.
    pub bytes_to_device: u64,
    /// Bytes to the host.
    pub bytes_to_host: u64,
}

/// A device and the transfers to and from it.
pub struct HostTransfers {
    device: Device,
    /// The only thread that may compute; `None` for all.
    owner: Option<ThreadId>,
    counts: Cell<TransferCounts>,
}

impl HostTransfers {
    /// Transfers to and from `device`; on a CUDA device by this thread alone.
    pub fn new(device: Device) -> Self {
        match device.is_cuda() {
            true => Self::of_this_thread(device),
            false => Self { device, owner: None, counts: Cell::default() },
        }
    }

    /// Transfers by this thread alone. A CUDA device gives each thread a stream of its own, and nothing orders
    /// the streams of two threads: another thread would read what is not computed yet, and no error would say so.
    pub fn of_this_thread(device: Device) -> Self {
        Self { device, owner: Some(std::thread::current().id()), counts: Cell::default() }
    }

    /// Refuses threads that are not the owner. Each pass, update and read begins or ends with a transfer.
    fn check_thread(&self) -> Outcome<()> {
        if self.owner.is_none_or(|owner| owner == std::thread::current().id()) {
            return Ok(());
        }
        Err(BackendError::Backend {
            backend: "candle",
            reason: "the model was loaded by another thread, and the work of two threads on a CUDA device is \
                     not ordered: load and train on one thread"
                .to_owned(),
        })
    }

    /// Transfers so far.
    #[cfg(test)]
    pub fn counts(&self) -> TransferCounts {
        self.counts.get()
    }

    fn count_to_device(&self, bytes: usize) {
        let mut counts = self.counts.get();
        counts.to_device += 1;
        counts.bytes_to_device += bytes as u64;
        self.counts.set(counts);
    }

    fn count_to_host(&self, bytes: usize) {
        let mut counts = self.counts.get();
        counts.to_host += 1;
        counts.bytes_to_host += bytes as u64;
        self.counts.set(counts);
    }

    /// Floats, row-major, to the device.
    pub fn floats(&self, values: &[f32], shape: impl Into<Shape>) -> Outcome<Tensor> {
        self.upload(values, shape.into())
    }

    /// Indexes to the device.
    pub fn indexes(&self, values: &[u32]) -> Outcome<Tensor> {
        self.upload(values, values.len().into())
    }

    /// Bytes to the device.
    pub fn bytes(&self, values: &[u8]) -> Outcome<Tensor> {
        self.upload(values, values.len().into())
    }

    /// Floats to the device in `precision`. They are rounded on the way: half the bytes go up, and the device never
    /// holds them in 32 bits.
    pub fn rounded(
        &self,
        values: &[f32],
        shape: impl Into<Shape>,
        precision: DType,
    ) -> Outcome<Tensor> {
        if precision != DType::BF16 {
            return Ok(self.floats(values, shape)?.to_dtype(precision)?);
        }
        const PART: usize = 1 << 16;
        let mut rounded = vec![bf16::ZERO; values.len()];
        rounded
            .par_chunks_mut(PART)
            .zip(values.par_chunks(PART))
            .for_each(|(into, from)| into.convert_from_f32_slice(from));
        self.upload(&rounded, shape.into())
    }

    fn upload<T: WithDType>(&self, values: &[T], shape: Shape) -> Outcome<Tensor> {
        self.check_thread()?;
        if values.is_empty() {
            return self.zeros_of(shape.dims(), T::DTYPE);
        }
        self.count_to_device(size_of_val(values));
        Ok(Tensor::from_slice(values, shape, &self.device)?)
    }

    /// Floats to the host, row-major.
    pub fn read(&self, tensor: &Tensor) -> Outcome<Vec<f32>> {
        self.check_thread()?;
        self.count_to_host(tensor.elem_count() * tensor.dtype().size_in_bytes());
        Ok(tensor.flatten_all()?.to_vec1()?)
    }

    /// Zeros, made on the device.
    pub fn zeros(&self, rows: usize, columns: usize) -> Outcome<Tensor> {
        self.zeros_of(&[rows, columns], DType::F32)
    }

    /// Zeros of a shape that may be empty. A CUDA device refuses to allocate no bytes: what is empty is a part
    /// of something that is not.
    fn zeros_of(&self, dims: &[usize], dtype: DType) -> Outcome<Tensor> {
        self.check_thread()?;
        if !dims.contains(&0) {
            return Ok(Tensor::zeros(dims, dtype, &self.device)?);
        }
        let one = Tensor::zeros(1, dtype, &self.device)?;
        Ok(one.narrow(0, 0, 0)?.reshape(dims)?)
    }
}
