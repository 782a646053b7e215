//! The candle backend: plain candle operations, against which the CPU's kernels are tested, and which run on
//! other devices. Candle's autograd is not used; each backward is written out.
//!
//! # On a CUDA device
//!
//! The model's weights are bf16, also where they train; the optimiser updates an f32 copy of them. Products
//! with weights take both operands in bf16, accumulate in f32 and round their result to bf16, as
//! `torch.autocast` does. The residual stream, norms, attention, LoRA, gradients and Adam's moments are f32.
//! On a CPU everything is.
//!
//! The host launches work and never waits for it within a pass: see `transfers.rs`. The numbers of the batch
//! (token ids, positions, loss rows, targets, factors, and with dropout its masks as bits) go to the device
//! once a pass, whatever the number of layers. The losses come back once a pass, after the whole backward
//! pass has been launched (before it where losses decide on factors, as for preferences), and the norm of
//! the gradients once a step. Attention masks are made on the device. Not counted is what candle itself
//! hands to a kernel: shape and strides of tensors that are not contiguous, a few dozen bytes to the device,
//! for which nothing waits.
//!
//! Nothing here adds with atomics: candle's sums, `index_add` and `scatter_add` run in a fixed order, and
//! cuBLAS is reproducible on one kind of device, one version and one stream. So the same job should give the
//! same bytes there; between devices it does not.

mod activation;
mod attention;
mod cross_entropy;
mod decoding;
mod dropout;
mod error;
mod kv_cache;
mod layers;
mod loss;
mod matrices;
mod norm;
mod optimiser;
mod query_chunks;
#[cfg(test)]
mod tests;
mod transfers;
mod weight;
mod weight_training;

use candle_core::{DType, Device};

use self::query_chunks::CandleAttention;
use self::transfers::HostTransfers;
#[cfg(test)]
pub use self::transfers::TransferCounts;

/// Candle on one device.
pub struct CandleBackend {
    transfers: HostTransfers,
    attention: CandleAttention,
    /// Precision of the model's weights.
    precision: DType,
}

/// Bytes of temporary tensors in a decoder layer or in the head, whichever needs more: about six tensors at
/// once of attention scores, or of a chunk of logits.
pub fn temporary_bytes(heads: u64, longest: u64, vocabulary: u64) -> u64 {
    const AT_ONCE: u64 = 6;
    let of_a_row = heads * longest;
    let scores = (of_a_row * longest).min((query_chunks::MAX_SCORES as u64).max(of_a_row));
    AT_ONCE * 4 * scores.max(cross_entropy::HEAD_CHUNK as u64 * vocabulary)
}

impl CandleBackend {
    /// Candle on `device`.
    pub fn new(device: Device) -> Self {
        let precision = if device.is_cuda() { DType::BF16 } else { DType::F32 };
        Self::with_precision(device, precision)
    }

    /// Candle on `device` with frozen weights of `precision`.
    pub fn with_precision(device: Device, precision: DType) -> Self {
        Self {
            transfers: HostTransfers::new(device),
            attention: CandleAttention::default(),
            precision,
        }
    }

    /// Transfers so far.
    #[cfg(test)]
    pub fn transfer_counts(&self) -> TransferCounts {
        self.transfers.counts()
    }
}
