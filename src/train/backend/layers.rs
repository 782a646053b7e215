//! Layers: linear layers with LoRA, dropout, norms, rotary positions and activation functions.

use super::error::Outcome;
use super::matrices::Matrices;
use crate::train::rng::Stream;

/// Layers of the decoder, forward and backward. Every backend has them.
pub trait LayerOps: Matrices {
    /// Which elements of a layer's input dropout keeps.
    type DropoutMask: Send;

    /// Rows of the weight at `ids`, times `scale`: the embedding.
    fn embed(&self, table: &Self::Weight, ids: &Self::Indexes, scale: f32)
    -> Outcome<Self::Matrix>;
    /// x · Wᵀ + bias.
    fn linear(&self, x: &Self::Matrix, weight: &Self::Weight) -> Outcome<Self::Matrix>;
    /// Adds gradient · W to `into`; without it returns the product.
    fn linear_backward(
        &self,
        gradient: &Self::Matrix,
        weight: &Self::Weight,
        into: Option<Self::Matrix>,
    ) -> Outcome<Self::Matrix>;
    /// y += scale · (x · aᵀ) · bᵀ; returns x · aᵀ, which the backward pass needs.
    fn lora(
        &self,
        x: &Self::Matrix,
        pair: &LoraPair<Self>,
        scale: f32,
        y: &mut Self::Matrix,
    ) -> Outcome<Self::Matrix>;
    /// Adds the gradients of `a` and `b` to `gradients`, and that of x to `into` where it is given.
    #[expect(clippy::too_many_arguments, reason = "operands and results of forward, and gradients")]
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
    /// Linear layers with LoRA that read the same x, three at most, each as [`LayerOps::linear`] and then
    /// [`LayerOps::lora`].
    fn linears<const COUNT: usize>(
        &self,
        x: &Self::Matrix,
        layers: [LoraLinear<'_, Self>; COUNT],
        scale: f32,
    ) -> [Outcome<LoraOutput<Self>>; COUNT] {
        layers.map(|layer| {
            let mut y = self.linear(x, layer.weight)?;
            let inner = match layer.pair {
                Some(pair) => Some(self.lora(x, pair, scale, &mut y)?),
                None => None,
            };
            Ok((y, inner))
        })
    }
    /// Backward of [`LayerOps::linears`]: adds the gradients of the pairs, and returns that of x where
    /// `wanted`.
    fn linears_backward(
        &self,
        x: &Self::Matrix,
        layers: &mut [LoraLinearBackward<'_, Self>],
        scale: f32,
        wanted: bool,
    ) -> Outcome<Option<Self::Matrix>> {
        let mut into = None;
        for LoraLinearBackward { gradient, weight, pair } in layers {
            if wanted {
                into = Some(self.linear_backward(gradient, weight, into)?);
            }
            if let Some(LoraPairBackward { pair, inner, gradients }) = pair {
                self.lora_backward(gradient, x, inner, pair, scale, gradients, into.as_mut())?;
            }
        }
        Ok(into)
    }
    /// The masks of a pass for inverted dropout (Srivastava et al. 2014), one for each of `layers`, given as
    /// the layer's number and the columns of its input. An element is zero with probability `rate`, and is
    /// divided by 1 - `rate` otherwise. Row r of a layer is drawn from the layer's child of `draws[r]`, column
    /// c from its number at c, so that the same streams give the same masks on every backend.
    fn dropout_masks(
        &self,
        draws: &[Stream],
        layers: &[(u64, usize)],
        rate: f32,
    ) -> Outcome<Vec<Self::DropoutMask>>;
    /// Applies a dropout mask to x.
    fn apply_dropout(&self, x: &Self::Matrix, mask: &Self::DropoutMask) -> Outcome<Self::Matrix>;
    /// Normalises rows of the norm's width (several in one row of the matrix for per-head norms).
    fn norm(&self, x: &Self::Matrix, norm: &Norm<Self>) -> Outcome<Self::Matrix>;
    /// The gradient of x.
    fn norm_backward(
        &self,
        gradient: Self::Matrix,
        x: &Self::Matrix,
        norm: &Norm<Self>,
    ) -> Outcome<Self::Matrix>;
    /// Rotates every head by its token's position; `backward` rotates by the opposite angle.
    fn rotate(
        &self,
        x: &mut Self::Matrix,
        head_dim: usize,
        table: &RopeTable<Self>,
        positions: &Self::Indexes,
        backward: bool,
    ) -> Outcome<()>;
    /// The activation function of `gate`, times `up` where the MLP is gated.
    fn activate(
        &self,
        activation: Activation,
        gate: &Self::Matrix,
        up: Option<&Self::Matrix>,
    ) -> Outcome<Self::Matrix>;
    /// The gradients of `gate` and `up`, whose memory they reuse.
    fn activate_backward(
        &self,
        activation: Activation,
        gate: Self::Matrix,
        up: Option<Self::Matrix>,
        gradient: &Self::Matrix,
    ) -> Outcome<(Self::Matrix, Option<Self::Matrix>)>;
}

/// One LoRA pair: y += scale · (x · aᵀ) · bᵀ.
pub struct LoraPair<B: Matrices> {
    /// `[rank, inputs]`.
    pub a: B::Matrix,
    /// `[outputs, rank]`.
    pub b: B::Matrix,
}

/// A linear layer and its LoRA pair, where it has one.
pub struct LoraLinear<'a, B: Matrices> {
    /// The layer.
    pub weight: &'a B::Weight,
    /// Its LoRA pair.
    pub pair: Option<&'a LoraPair<B>>,
}

/// The output of a layer and, where it has a pair, x · aᵀ.
pub type LoraOutput<B> = (<B as Matrices>::Matrix, Option<<B as Matrices>::Matrix>);

/// A linear layer with LoRA in the backward pass.
pub struct LoraLinearBackward<'a, B: Matrices> {
    /// The gradient of the layer's output.
    pub gradient: &'a B::Matrix,
    /// The layer.
    pub weight: &'a B::Weight,
    /// Its pair, where it has one.
    pub pair: Option<LoraPairBackward<'a, B>>,
}

/// A LoRA pair in the backward pass.
pub struct LoraPairBackward<'a, B: Matrices> {
    /// The pair.
    pub pair: &'a LoraPair<B>,
    /// x · aᵀ, as the forward pass returned it.
    pub inner: &'a B::Matrix,
    /// Where its gradients are added.
    pub gradients: &'a mut LoraPair<B>,
}

/// A norm's constants on the device, over rows of `weight`'s length.
pub struct Norm<B: Matrices> {
    /// Factor of each column (Gemma's 1 + w is folded in).
    pub weight: B::Vector,
    /// Added to each column; layer norm has one.
    pub bias: Option<B::Vector>,
    /// Length of a row.
    pub width: usize,
    /// RMS norm or layer norm.
    pub kind: NormKind,
    /// Added to the variance.
    pub epsilon: f32,
}

/// The kind of a norm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormKind {
    /// RMS norm.
    Rms,
    /// RMS norm that multiplies with 1 + w (Gemma).
    RmsOnePlus,
    /// Layer norm with bias.
    Layer,
}

/// Cosines and sines of rotary positions, `[positions, half]`; a head's element i rotates with element
/// i + half.
pub struct RopeTable<B: Matrices> {
    /// Cosines.
    pub cos: B::Matrix,
    /// Sines.
    pub sin: B::Matrix,
    /// Pairs that rotate; zero for none.
    pub half: usize,
}

/// The activation function of the MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// x · sigmoid(x).
    Silu,
    /// GELU in its tanh form (`gelu_new`, `gelu_pytorch_tanh`).
    GeluTanh,
    /// GELU with the error function.
    Gelu,
}
