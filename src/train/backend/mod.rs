//! The seam between the decoder and the device: coarse operations, each with forward and backward.
//!
//! The decoder is written once against [`Backend`]. [`cpu`] is the fast implementation, [`candle`]
//! the plain one: the oracle that the kernels are tested against, and the way onto other devices.
//!
//! Matrices are `[rows, columns]`, row-major, 32-bit; a packed batch is one matrix whose rows are
//! tokens, with its [`Segment`]s beside it.

pub mod candle;
#[expect(unsafe_code, reason = "vector instructions, each use with its SAFETY")]
pub mod cpu;
mod error;
mod operands;

use std::ops::Range;

pub use self::error::{BackendError, Outcome};
pub use self::operands::{
    Activation, AdamWStep, Adapted, AdaptedBackward, AdaptedResult, AttentionShape, LoraPair,
    Moved, Norm, NormKind, PairBackward, PairsOfRows, RopeTable, RowLoss, RowsOfText, Segment,
};
use super::rng::Stream;

/// A device and how it computes.
pub trait Backend: Send + Sized + 'static {
    /// A matrix of 32-bit floats on the device.
    type Matrix: Send;
    /// A linear layer, `[outputs, inputs]` with an optional bias, laid out as the device likes.
    type Weight: Send;
    /// A row of floats.
    type Vector: Send;
    /// Row numbers, token ids or positions on the device.
    type Indexes: Send;
    /// What rows of logits came to, on the device until [`Backend::row_losses`] reads it.
    type Losses: Send;
    /// Which elements of a layer's input dropout keeps.
    type Mask: Send;
    /// Keys and values of one text, of all layers.
    type Cache: Send;
    /// A LoRA pair laid out once for many passes, forward only.
    type Prepared: Send;

    /// Name for messages.
    fn name(&self) -> &'static str;

    // ---- moving

    /// A matrix from host values, row-major.
    fn matrix(&self, rows: usize, columns: usize, values: &[f32]) -> Outcome<Self::Matrix>;
    /// A matrix of zeros.
    fn zeros(&self, rows: usize, columns: usize) -> Outcome<Self::Matrix>;
    /// A matrix's values, row-major.
    fn values(&self, matrix: &Self::Matrix) -> Outcome<Vec<f32>>;
    /// Rows of a matrix.
    fn rows(&self, matrix: &Self::Matrix) -> usize;
    /// A second matrix with the same values.
    fn copy(&self, matrix: &Self::Matrix) -> Outcome<Self::Matrix>;
    /// A row.
    fn vector(&self, values: &[f32]) -> Outcome<Self::Vector>;
    /// Indexes from host values.
    fn indexes(&self, values: &[u32]) -> Outcome<Self::Indexes>;
    /// A linear layer from `[outputs, inputs]`; `backward` says whether gradients of its
    /// input will be asked for.
    fn weight(
        &self,
        outputs: usize,
        inputs: usize,
        values: &[f32],
        bias: Option<&[f32]>,
        backward: bool,
    ) -> Outcome<Self::Weight>;

    // ---- parts of matrices

    /// Rows of the weight itself at `ids`, times `scale`: the embedding.
    fn embed(&self, table: &Self::Weight, ids: &Self::Indexes, scale: f32)
    -> Outcome<Self::Matrix>;
    /// The rows at `indexes`.
    fn take_rows(&self, matrix: &Self::Matrix, indexes: &Self::Indexes) -> Outcome<Self::Matrix>;
    /// A matrix of `rows` rows, zero but for `from`'s rows at `indexes` (no index twice).
    fn spread_rows(
        &self,
        rows: usize,
        indexes: &Self::Indexes,
        from: &Self::Matrix,
    ) -> Outcome<Self::Matrix>;
    /// The columns in `ranges`, side by side.
    fn take_columns(&self, matrix: &Self::Matrix, ranges: &[Range<usize>])
    -> Outcome<Self::Matrix>;
    /// Backward of [`Backend::take_columns`]: writes `from` into the columns in `ranges` of `into`.
    fn put_columns(
        &self,
        into: &mut Self::Matrix,
        ranges: &[Range<usize>],
        from: &Self::Matrix,
    ) -> Outcome<()>;
    /// Puts `more`'s rows below `matrix`'s.
    fn append_rows(&self, matrix: &mut Self::Matrix, more: &Self::Matrix) -> Outcome<()>;
    /// `into += from`.
    fn add(&self, into: &mut Self::Matrix, from: &Self::Matrix) -> Outcome<()>;

    // ---- layers

    /// x · Wᵀ + bias.
    fn linear(&self, x: &Self::Matrix, weight: &Self::Weight) -> Outcome<Self::Matrix>;
    /// Adds gradient · W to `into`, or makes it where there is none yet.
    fn linear_backward(
        &self,
        gradient: &Self::Matrix,
        weight: &Self::Weight,
        into: Option<Self::Matrix>,
    ) -> Outcome<Self::Matrix>;
    /// y += scale · (x · aᵀ) · bᵀ; returns x · aᵀ, which the backward pass wants.
    fn lora(
        &self,
        x: &Self::Matrix,
        pair: &LoraPair<Self>,
        scale: f32,
        y: &mut Self::Matrix,
    ) -> Outcome<Self::Matrix>;
    /// Adds the gradients of `a` and `b` to `gradients`, and that of x to `into` where it is given.
    #[expect(clippy::too_many_arguments, reason = "what forward read and made, and its gradients")]
    fn lora_backward(
        &self,
        gradient: &Self::Matrix,
        x: &Self::Matrix,
        inner: &Self::Matrix,
        pair: &LoraPair<Self>,
        scale: f32,
        gradients: &mut LoraPair<Self>,
        into: Option<&mut Self::Matrix>,
    ) -> Outcome<()>;
    /// Adapted layers that read the same x, three at most, each as [`Backend::linear`] and then
    /// [`Backend::lora`] compute it.
    fn linears<const COUNT: usize>(
        &self,
        x: &Self::Matrix,
        layers: [Adapted<'_, Self>; COUNT],
        scale: f32,
    ) -> [Outcome<AdaptedResult<Self>>; COUNT] {
        layers.map(|layer| {
            let mut y = self.linear(x, layer.weight)?;
            let inner = match layer.pair {
                Some(pair) => Some(self.lora(x, pair, scale, &mut y)?),
                None => None,
            };
            Ok((y, inner))
        })
    }
    /// Backward of [`Backend::linears`]: adds the gradients of the pairs to theirs, and returns that of
    /// x where it is wanted.
    fn linears_backward(
        &self,
        x: &Self::Matrix,
        layers: &mut [AdaptedBackward<'_, Self>],
        scale: f32,
        wanted: bool,
    ) -> Outcome<Option<Self::Matrix>> {
        let mut into = None;
        for AdaptedBackward { gradient, weight, pair } in layers {
            if wanted {
                into = Some(self.linear_backward(gradient, weight, into)?);
            }
            if let Some(PairBackward { pair, inner, gradients }) = pair {
                self.lora_backward(gradient, x, inner, pair, scale, gradients, into.as_mut())?;
            }
        }
        Ok(into)
    }
    /// The masks of a pass for inverted dropout (Srivastava et al. 2014), one for each of `layers`: a
    /// number that tells the layers apart, and the columns of its input. An element is zero with
    /// probability `rate`, and divided by 1 - `rate` otherwise. Row r of a layer is decided by the
    /// layer's child of `draws[r]`, its column c by the number at c, so that the same draws give the
    /// same masks on every backend.
    fn masks(
        &self,
        draws: &[Stream],
        layers: &[(u64, usize)],
        rate: f32,
    ) -> Outcome<Vec<Self::Mask>>;
    /// What `mask` leaves of x.
    fn drop_out(&self, x: &Self::Matrix, mask: &Self::Mask) -> Outcome<Self::Matrix>;
    /// Normalises rows of the norm's width (several in one row of the matrix for per-head norms).
    fn norm(&self, x: &Self::Matrix, norm: &Norm<Self>) -> Outcome<Self::Matrix>;
    /// The gradient of x.
    fn norm_backward(
        &self,
        gradient: Self::Matrix,
        x: &Self::Matrix,
        norm: &Norm<Self>,
    ) -> Outcome<Self::Matrix>;
    /// Turns every head by its token's position; `back` turns the other way, the backward pass.
    fn rotate(
        &self,
        x: &mut Self::Matrix,
        head_dim: usize,
        table: &RopeTable<Self>,
        positions: &Self::Indexes,
        back: bool,
    ) -> Outcome<()>;
    /// The curve of `gate`, times `up` where the MLP is gated.
    fn activate(
        &self,
        curve: Activation,
        gate: &Self::Matrix,
        up: Option<&Self::Matrix>,
    ) -> Outcome<Self::Matrix>;
    /// The gradients of `gate` and `up`, which are spent.
    fn activate_backward(
        &self,
        curve: Activation,
        gate: Self::Matrix,
        up: Option<Self::Matrix>,
        gradient: &Self::Matrix,
    ) -> Outcome<(Self::Matrix, Option<Self::Matrix>)>;

    // ---- attention

    /// Causal attention inside of each segment and what stands before it. Returns the output and what
    /// the backward pass wants beside it.
    fn attention(
        &self,
        queries: &Self::Matrix,
        keys: &Self::Matrix,
        values: &Self::Matrix,
        segments: &[Segment],
        shape: &AttentionShape,
    ) -> Outcome<(Self::Matrix, Self::Matrix)>;
    /// Gradients of queries, keys and values.
    #[expect(clippy::too_many_arguments, reason = "what forward read and made, and its gradient")]
    fn attention_backward(
        &self,
        gradient: &Self::Matrix,
        queries: &Self::Matrix,
        keys: &Self::Matrix,
        values: &Self::Matrix,
        output: &Self::Matrix,
        saved: &Self::Matrix,
        segments: &[Segment],
        shape: &AttentionShape,
    ) -> Outcome<[Self::Matrix; 3]>;
    /// A cache of no token, for so many layers of `shape` (whose windows may differ).
    fn cache(&self, layers: usize, shape: &AttentionShape) -> Outcome<Self::Cache>;
    /// Makes room for a pass of `tokens` tokens.
    fn reserve(&self, cache: &mut Self::Cache, tokens: usize) -> Outcome<()>;
    /// Puts each text's rows of keys and values into its cache's layer, and attends to what this then
    /// holds. The tokens count with [`Backend::advance`], after the last layer.
    fn attend(
        &self,
        layer: usize,
        queries: &Self::Matrix,
        keys: &Self::Matrix,
        values: &Self::Matrix,
        texts: &mut [RowsOfText<'_, Self>],
        shape: &AttentionShape,
    ) -> Outcome<Self::Matrix>;
    /// The tokens of a pass count.
    fn advance(&self, cache: &mut Self::Cache, tokens: usize);
    /// Tokens that a cache holds.
    fn cached(&self, cache: &Self::Cache) -> usize;
    /// Lays out a pair, with its scale.
    fn prepare(&self, pair: &LoraPair<Self>, scale: f32) -> Outcome<Self::Prepared>;
    /// Linear layers that read the same x, three at most, where runs of its rows have pairs of their
    /// own. A row comes out alike whatever stands beside it, where the backend promises that.
    fn linears_of_runs<const COUNT: usize>(
        &self,
        x: &Self::Matrix,
        weights: [&Self::Weight; COUNT],
        runs: &[PairsOfRows<'_, Self, COUNT>],
    ) -> [Outcome<Self::Matrix>; COUNT];

    // ---- the end

    /// x · Wᵀ, soft-capped.
    fn logits(
        &self,
        x: &Self::Matrix,
        head: &Self::Weight,
        soft_cap: Option<f32>,
    ) -> Outcome<Self::Matrix>;
    /// Cross entropy of x · Wᵀ against `targets`, row by row; with `factors` also the gradient of
    /// Σ factors\[row\] · loss\[row\] with respect to x. The logits exist a chunk at a time.
    fn head_loss(
        &self,
        x: &Self::Matrix,
        head: &Self::Weight,
        targets: &Self::Indexes,
        soft_cap: Option<f32>,
        factors: Option<&[f32]>,
    ) -> Outcome<(Self::Losses, Option<Self::Matrix>)>;
    /// The losses, for the host: waits until the device has computed them.
    fn row_losses(&self, losses: &Self::Losses) -> Outcome<Vec<RowLoss>>;

    // ---- training the model's own weights, for backends that do

    /// Whether the operations of this section are there; [`super::engine::load_tuned`] asks first.
    fn trains_weights(&self) -> bool {
        false
    }
    /// Adds gradientᵀ · x to `into`: the gradient of a linear layer's weight, `[outputs, inputs]`.
    fn weight_gradient(
        &self,
        _gradient: &Self::Matrix,
        _x: &Self::Matrix,
        _into: &mut Self::Matrix,
    ) -> Outcome<()> {
        Err(frozen(self))
    }
    /// Adds the sum of the gradient's rows, which are as long as that of `into` (several in one row
    /// of the matrix for per-head norms): the gradient of a bias, `[1, outputs]`.
    fn bias_gradient(&self, _gradient: &Self::Matrix, _into: &mut Self::Matrix) -> Outcome<()> {
        Err(frozen(self))
    }
    /// Adds the gradient of a norm's weight, `[1, width]`, where `x` is what the norm read. It is
    /// Gemma's as well, whose stored weight is that of the norm less one.
    fn norm_weight_gradient(
        &self,
        _gradient: &Self::Matrix,
        _x: &Self::Matrix,
        _norm: &Norm<Self>,
        _into: &mut Self::Matrix,
    ) -> Outcome<()> {
        Err(frozen(self))
    }
    /// Adds the gradient's rows, times `scale`, to the rows of `into` at `ids`: the backward of
    /// [`Backend::embed`] towards the table.
    fn embed_gradient(
        &self,
        _gradient: &Self::Matrix,
        _ids: &Self::Indexes,
        _scale: f32,
        _into: &mut Self::Matrix,
    ) -> Outcome<()> {
        Err(frozen(self))
    }
    /// As [`Backend::head_loss`] with `factors`, and adds the gradient of the head's weight to
    /// `into`.
    fn head_loss_and_gradient(
        &self,
        _x: &Self::Matrix,
        _head: &Self::Weight,
        _targets: &Self::Indexes,
        _soft_cap: Option<f32>,
        _factors: &[f32],
        _into: &mut Self::Matrix,
    ) -> Outcome<(Self::Losses, Option<Self::Matrix>)> {
        Err(frozen(self))
    }
    /// Puts other values into a linear layer, those of `values` (`[outputs, inputs]`) and of `bias`
    /// (`[1, outputs]`) where they are given.
    fn replace_weight(
        &self,
        _weight: &mut Self::Weight,
        _values: Option<&Self::Matrix>,
        _bias: Option<&Self::Matrix>,
    ) -> Outcome<()> {
        Err(frozen(self))
    }
    /// The one row of `row`, with `plus` added to each element: what a norm multiplies with or adds.
    fn vector_of(&self, _row: &Self::Matrix, _plus: f32) -> Outcome<Self::Vector> {
        Err(frozen(self))
    }

    // ---- the optimiser

    /// Sum of the squares of all elements of all `matrices`.
    fn sum_of_squares(&self, matrices: &[&Self::Matrix]) -> Outcome<f64>;
    /// One AdamW step of `tensors`; the gradients are scaled by `gradient_factor` first.
    fn adamw(
        &self,
        tensors: Vec<Moved<'_, Self>>,
        step: &AdamWStep,
        gradient_factor: f64,
    ) -> Outcome<()>;
}

/// What a backend says that carries the model's own weights frozen.
fn frozen<B: Backend>(backend: &B) -> BackendError {
    BackendError::FrozenWeights { backend: backend.name() }
}
