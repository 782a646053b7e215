//! The interface between the decoder and the device: coarse operations, each with forward and backward.
//!
//! The decoder is written once against [`Backend`]. [`cpu`] has the fast kernels. [`candle`] is plain: the
//! kernels are tested against it, and it runs on other devices.
//!
//! Matrices are `[rows, columns]`, row-major, f32. A packed batch is one matrix whose rows are tokens, with
//! its [`Segment`]s.

mod attention;
pub mod candle;
#[expect(unsafe_code, reason = "vector instructions, each use with its SAFETY")]
pub mod cpu;
#[cfg(test)]
mod cuda;
mod decoding;
mod error;
mod layers;
mod loss;
mod matrices;
mod optimiser;
mod weight_training;

pub use self::attention::{AttentionOps, AttentionShape, Segment};
pub use self::decoding::{CachedRows, DecodingOps, LoraGroup};
pub use self::error::{BackendError, Outcome};
pub use self::layers::{
    Activation, LayerOps, LoraLinear, LoraLinearBackward, LoraOutput, LoraPair, LoraPairBackward,
    Norm, NormKind, RopeTable,
};
pub use self::loss::{LossOps, RowLoss};
pub use self::matrices::Matrices;
pub use self::optimiser::{AdamWStep, OptimiserOps, ParameterUpdate};
pub use self::weight_training::WeightTrainingOps;

/// A device and how it computes. A new backend implements the operations that this trait names; of
/// [`WeightTrainingOps`] it may keep the defaults, which refuse.
pub trait Backend:
    Matrices + LayerOps + AttentionOps + DecodingOps + LossOps + WeightTrainingOps + OptimiserOps
{
}

impl<B> Backend for B where
    B: Matrices
        + LayerOps
        + AttentionOps
        + DecodingOps
        + LossOps
        + WeightTrainingOps
        + OptimiserOps
{
}
