//! What the operations of a [`Backend`] take and give beside matrices.

use std::ops::Range;

use super::Backend;

/// How attention is done in one layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionShape {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Factor on the scores.
    pub scale: f32,
    /// A query sees itself and the `window - 1` tokens before it; `None` sees all before it.
    pub window: Option<usize>,
    /// Scores s become cap·tanh(s / cap).
    pub soft_cap: Option<f32>,
}

/// A run of rows of a packed batch, and what stands before it in its text. A batch's segments hold
/// its rows in order, without gaps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// Its own rows.
    pub rows: Range<usize>,
    /// Runs of rows before them, in the order of the text: prefixes that it shares with others.
    pub before: Vec<Range<usize>>,
}

impl Segment {
    /// A text of its own.
    pub fn alone(rows: Range<usize>) -> Self {
        Self { rows, before: Vec::new() }
    }

    /// Runs of the rows that its last row sees, in the order of the text.
    pub fn seen(&self) -> impl Iterator<Item = Range<usize>> {
        self.before.iter().cloned().chain(std::iter::once(self.rows.clone()))
    }

    /// Number of rows that its last row sees.
    pub fn keys(&self) -> usize {
        self.seen().map(|rows| rows.len()).sum()
    }
}

/// A norm's constants on the device, over rows of `weight`'s length.
pub struct Norm<B: Backend> {
    /// Factor of each column (Gemma's 1 + w is folded in).
    pub weight: B::Vector,
    /// Added to each column; layer norm has one.
    pub bias: Option<B::Vector>,
    /// Length of a row.
    pub width: usize,
    /// Layer norm takes off the mean.
    pub kind: NormKind,
    /// Added to the variance.
    pub epsilon: f32,
}

/// Cosines and sines of rotary positions, `[positions, half]`; a head's element i turns with
/// element i + half.
pub struct RopeTable<B: Backend> {
    /// Cosines.
    pub cos: B::Matrix,
    /// Sines.
    pub sin: B::Matrix,
    /// Pairs that turn; zero for none.
    pub half: usize,
}

/// What one row of logits came to.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct RowLoss {
    /// Cross entropy in nats.
    pub loss: f32,
    /// Whether the target has the largest logit.
    pub correct: bool,
}

/// One LoRA pair: y += scale · (x · aᵀ) · bᵀ.
pub struct LoraPair<B: Backend> {
    /// `[rank, inputs]`.
    pub a: B::Matrix,
    /// `[outputs, rank]`.
    pub b: B::Matrix,
}

/// A linear layer and its pair, where it has one.
pub struct Adapted<'a, B: Backend> {
    /// The layer.
    pub weight: &'a B::Weight,
    /// What LoRA puts beside it.
    pub pair: Option<&'a LoraPair<B>>,
}

/// An adapted layer on the way back.
pub struct AdaptedBackward<'a, B: Backend> {
    /// The gradient of the layer's result.
    pub gradient: &'a B::Matrix,
    /// The layer.
    pub weight: &'a B::Weight,
    /// Its pair, where it has one.
    pub pair: Option<PairBackward<'a, B>>,
}

/// A LoRA pair on the way back.
pub struct PairBackward<'a, B: Backend> {
    /// The pair.
    pub pair: &'a LoraPair<B>,
    /// x · aᵀ, as forward returned it.
    pub inner: &'a B::Matrix,
    /// Where its gradients are added.
    pub gradients: &'a mut LoraPair<B>,
}

/// Rows and the pairs beside layers for them, a pair or none for each layer.
pub struct PairsOfRows<'a, B: Backend, const COUNT: usize> {
    /// The rows.
    pub rows: Range<usize>,
    /// The pairs.
    pub pairs: [Option<&'a B::Prepared>; COUNT],
}

/// Rows of a pass that continue a text.
pub struct RowsOfText<'a, B: Backend> {
    /// The rows.
    pub rows: Range<usize>,
    /// What came before them.
    pub cache: &'a mut B::Cache,
}

/// A result and, where there is a pair, x · aᵀ.
pub type AdaptedResult<B> = (<B as Backend>::Matrix, Option<<B as Backend>::Matrix>);

/// A tensor that an optimiser moves.
pub struct Moved<'a, B: Backend> {
    /// The tensor.
    pub parameter: &'a mut B::Matrix,
    /// Its gradient.
    pub gradient: &'a B::Matrix,
    /// Adam's first moment of it.
    pub first: &'a mut B::Matrix,
    /// Adam's second moment of it.
    pub second: &'a mut B::Matrix,
}

/// One AdamW step (Loshchilov & Hutter 2019, with bias correction, as `torch.optim.AdamW`).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWStep {
    /// Learning rate of this step.
    pub learning_rate: f64,
    /// First moment's decay.
    pub beta1: f64,
    /// Second moment's decay.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Gradients are scaled by min(1, clip / (norm + 1e-6)), over all tensors that train together.
    pub clip: f64,
    /// Number of this step, from 1, for the bias correction.
    pub step: u64,
}

/// How rows are normalised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormKind {
    /// RMS norm.
    Rms,
    /// RMS norm whose stored weight is w with 1 + w meant (Gemma).
    RmsOnePlus,
    /// Layer norm with bias.
    Layer,
}

/// The non-linearity of the MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// x · sigmoid(x).
    Silu,
    /// GELU in its tanh form (`gelu_new`, `gelu_pytorch_tanh`).
    GeluTanh,
    /// GELU with the error function.
    Gelu,
}
