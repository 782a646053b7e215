//! The candle backend: plain candle operations, against which the CPU's kernels are tested, and which run on
//! other devices. Candle's autograd is not used; each backward is written out.
//!
//! # On a CUDA device
//!
//! The model's weights are bf16, also where they train; the optimiser updates an f32 copy of them. Products
//! with weights take both operands in bf16, accumulate in f32 and round their result to bf16, as
//! `torch.autocast` does. The residual stream, norms, attention, LoRA, gradients and Adam's moments are f32;
//! products of f32 matrices round their operands to TF32 (10 bits of mantissa). On a CPU everything is f32.
//!
//! The host launches work and never waits for it within a pass: see `transfers.rs`. The numbers of the batch
//! (token ids, positions, loss rows, targets, factors, the rows of segments that attend together, and with
//! dropout its masks as bits) go to the device once a pass, whatever the number of layers. The losses come back once a pass, after the whole backward
//! pass has been launched (before it where losses decide on factors, as for preferences), and the norm of
//! the gradients once a step. Attention masks are made on the device. Not counted there is what candle itself
//! hands to a kernel: shape and strides of tensors that are not contiguous or are summed, a few dozen bytes,
//! for which nothing waits. `tests/cuda/run` counts them, with all launches.
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
mod rotation;
mod segment_groups;
#[cfg(test)]
mod tests;
mod transfers;
mod weight;
mod weight_training;

use std::sync::Arc;

use candle_core::{DType, Device};

use self::query_chunks::CandleAttention;
use self::rotation::RotationCache;
use self::segment_groups::{GroupCache, GroupedSegments};
use self::transfers::HostTransfers;
#[cfg(test)]
pub use self::transfers::TransferCounts;
use crate::train::backend::{AttentionShape, Outcome, Segment};

/// Candle on one device.
pub struct CandleBackend {
    transfers: HostTransfers,
    attention: CandleAttention,
    groups: GroupCache,
    rotations: RotationCache,
    /// Rows of logits that exist at once.
    head_rows: usize,
    /// Precision of the model's weights.
    precision: DType,
}

/// What decides on the temporary tensors of a pass.
#[derive(Debug, Clone, Copy)]
pub struct PassShape {
    /// Query heads.
    pub heads: u64,
    /// Tokens of the pass.
    pub tokens: u64,
    /// Tokens of its longest sequence.
    pub longest: u64,
    /// Tokens of the longest prefix that its sequences share.
    pub shared: u64,
    /// Size of the vocabulary.
    pub vocabulary: u64,
    /// Rows of logits that exist at once.
    pub head_rows: u64,
}

/// Bytes of temporary tensors in a decoder layer or in the head, whichever needs more: about six tensors at
/// once of attention scores, or of a chunk of logits; and the mask of attention.
pub fn temporary_bytes(shape: &PassShape) -> u64 {
    const AT_ONCE: u64 = 6;
    let PassShape { heads, tokens, longest, shared, vocabulary, head_rows } = *shape;
    let max_scores = query_chunks::MAX_SCORES as u64;
    let of_a_row = heads * longest;
    let alone = (of_a_row * longest).min(max_scores.max(of_a_row));
    // Filled up, the segments of a group are twice as long at most.
    let filled = longest.min(segment_groups::MAX_FILLED as u64).next_power_of_two();
    let grouped = (heads * 2 * tokens * (shared + filled)).min(max_scores);
    let mask = longest.next_power_of_two().min(query_chunks::MAX_MASK_KEYS as u64).pow(2);
    let scores = if tokens > longest { alone.max(grouped) } else { alone };
    4 * (AT_ONCE * scores.max(head_rows * vocabulary) + mask)
}

/// Rows of logits that exist at once in passes of `tokens` tokens: as many for each token as on a CPU, and fewer
/// where the vocabulary is so large that they would be more than the scores of attention.
pub fn head_rows(tokens: usize, vocabulary: usize) -> usize {
    let wanted = cross_entropy::HEAD_CHUNK * tokens / CPU_PASS;
    let most = query_chunks::MAX_SCORES / vocabulary.max(1);
    wanted.min(most).max(cross_entropy::HEAD_CHUNK)
}

/// Tokens of a pass for which [`cross_entropy::HEAD_CHUNK`] was chosen.
const CPU_PASS: usize = 512;

/// Whether products of 32-bit matrices (attention's and LoRA's) round their operands to TF32, 10 bits of mantissa,
/// where weights are of `precision`. Beside bf16 weights, whose products round to 7, they do; who asks for weights in
/// 32 bits gets all bits everywhere.
fn computes_in_tf32(precision: DType) -> bool {
    precision == DType::BF16
}

impl CandleBackend {
    /// Candle on `device`.
    pub fn new(device: Device) -> Self {
        let precision = if device.is_cuda() { DType::BF16 } else { DType::F32 };
        Self::with_precision(device, precision)
    }

    /// Candle on `device` with frozen weights of `precision`.
    pub fn with_precision(device: Device, precision: DType) -> Self {
        if device.is_cuda() {
            let is_reduced = computes_in_tf32(precision);
            candle_core::cuda::set_gemm_reduced_precision_f32(is_reduced);
        }
        Self {
            transfers: HostTransfers::new(device),
            attention: CandleAttention::default(),
            groups: GroupCache::default(),
            rotations: RotationCache::default(),
            head_rows: cross_entropy::HEAD_CHUNK,
            precision,
        }
    }

    /// The same with at most `rows` rows of logits at once.
    pub fn with_head_rows(self, rows: usize) -> Self {
        Self { head_rows: rows, ..self }
    }

    /// The segments of a pass in groups that attend together.
    fn grouped(
        &self,
        segments: &[Segment],
        shape: &AttentionShape,
    ) -> Outcome<Arc<GroupedSegments>> {
        let max_scores = self.attention.max_scores();
        self.groups.of(&self.transfers, segments, shape.heads, max_scores)
    }

    /// Transfers so far.
    #[cfg(test)]
    pub fn transfer_counts(&self) -> TransferCounts {
        self.transfers.counts()
    }
}
