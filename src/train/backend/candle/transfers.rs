//! The one way between host and device: everything that goes up or comes down does so here and is
//! counted.
//!
//! Asking the device for numbers makes the host wait for all that was asked of it before, so a
//! training step must not do it on its way. A test (`transfers`, beside the engine) counts what a
//! step moves; another (in `tests`) looks that no other file of this folder makes tensors of host
//! values or reads one.

use std::cell::Cell;

use candle_core::{DType, Device, Shape, Tensor};

use crate::train::backend::Outcome;

/// How often something went each way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Transfers {
    /// From the host to the device.
    pub up: u64,
    /// From the device to the host, which waits.
    pub down: u64,
}

/// A device and the ways to it.
pub struct Crossing {
    device: Device,
    transfers: Cell<Transfers>,
}

impl Crossing {
    /// The ways to `device`.
    pub fn new(device: Device) -> Self {
        Self { device, transfers: Cell::default() }
    }

    /// What has been moved so far.
    #[cfg(test)]
    pub fn transfers(&self) -> Transfers {
        self.transfers.get()
    }

    fn count_up(&self) {
        let Transfers { up, down } = self.transfers.get();
        self.transfers.set(Transfers { up: up + 1, down });
    }

    fn count_down(&self) {
        let Transfers { up, down } = self.transfers.get();
        self.transfers.set(Transfers { up, down: down + 1 });
    }

    /// Floats, row-major, to the device.
    pub fn floats(&self, values: &[f32], shape: impl Into<Shape>) -> Outcome<Tensor> {
        self.count_up();
        Ok(Tensor::from_slice(values, shape.into(), &self.device)?)
    }

    /// Indexes to the device.
    pub fn indexes(&self, values: &[u32]) -> Outcome<Tensor> {
        self.count_up();
        Ok(Tensor::from_slice(values, values.len(), &self.device)?)
    }

    /// Bytes to the device.
    pub fn bytes(&self, values: Vec<u8>) -> Outcome<Tensor> {
        self.count_up();
        let length = values.len();
        Ok(Tensor::from_vec(values, length, &self.device)?)
    }

    /// Floats to the host, row-major.
    pub fn read(&self, tensor: &Tensor) -> Outcome<Vec<f32>> {
        self.count_down();
        Ok(tensor.flatten_all()?.to_vec1()?)
    }

    /// Zeros, made on the device.
    pub fn zeros(&self, rows: usize, columns: usize) -> Outcome<Tensor> {
        // A CUDA device gives out no memory of no size: no rows are a part of one.
        let made = Tensor::zeros((rows.max(1), columns), DType::F32, &self.device)?;
        Ok(made.narrow(0, 0, rows)?)
    }
}
