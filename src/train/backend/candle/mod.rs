//! [`Backend`] from plain candle operations: the oracle for the CPU's kernels, and the way onto other
//! devices. Candle's autograd is not used; each backward is written out.
//!
//! # On a CUDA device
//!
//! Weights of the model are bfloat16, also where they train, which moves a copy of them in 32-bit
//! floats; products with them take both sides in bfloat16, add up in 32 bits
//! and round their result to bfloat16, as `torch.autocast` does. The residual stream, norms,
//! attention, LoRA, gradients and Adam's moments are 32-bit floats. On a CPU everything is.
//!
//! The host asks for work and never waits for it inside of a pass: see `crossing.rs`. Up go the
//! numbers of the batch (token ids, positions, loss rows, targets, factors, and with dropout its
//! masks as bits), once a pass, whatever the number of layers. Down come the losses, once a pass,
//! after the whole way back has been asked for (before it where losses decide on factors, as for
//! preferences), and the norm of the gradients, once a step. Masks of attention are made on the
//! device. Not counted is what candle itself hands to a kernel beside its tensors: shape and strides
//! of what is not contiguous, a few dozen bytes on the way up, for which nobody waits.
//!
//! Nothing here adds with atomics: candle's sums, `index_add` and `scatter_add` walk in a fixed
//! order, and cuBLAS promises to repeat itself on one kind of device, one version and one stream. So
//! the same job should give the same bytes there; between devices it does not.

mod activation;
mod attention;
mod cached;
mod dropout;
mod loss;
#[cfg(test)]
mod tests;
mod transfers;

use std::ops::Range;

use candle_core::{D, DType, Device, Tensor};

use self::attention::Attention;
use self::cached::{Cache, Prepared};
use self::dropout::Mask;
use self::transfers::Crossing;
#[cfg(test)]
pub use self::transfers::Transfers;
use super::{
    AttentionShape, Backend, LoraPair, Moved, Norm, Outcome, PairsOfRows, RopeTable, RowLoss,
    RowsOfText, Segment,
};
use crate::train::backend::AdamWStep;
use crate::train::backend::BackendError;
use crate::train::backend::{Activation, NormKind};
use crate::train::device::reason;
use crate::train::rng::Stream;

/// Candle on one device.
pub struct CandleBackend {
    crossing: Crossing,
    attention: Attention,
    /// What frozen weights are kept in.
    precision: DType,
}

/// A linear layer: `[outputs, inputs]` and its bias.
pub struct Weight {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Weight {
    /// x · Wᵀ + bias.
    fn forward(&self, x: &Tensor) -> Outcome<Tensor> {
        let y = times(x, &self.weight.t()?)?;
        match &self.bias {
            Some(bias) => Ok(y.broadcast_add(bias)?),
            None => Ok(y),
        }
    }
}

/// Bytes of what is made and dropped on the way through a block or the head, whichever is more: about
/// six tensors at once of attention's scores, or of a chunk of logits.
pub fn passing_bytes(heads: u64, longest: u64, vocabulary: u64) -> u64 {
    const AT_ONCE: u64 = 6;
    let of_a_row = heads * longest;
    let scores = (of_a_row * longest).min((attention::MOST_SCORES as u64).max(of_a_row));
    AT_ONCE * 4 * scores.max(loss::HEAD_CHUNK as u64 * vocabulary)
}

impl From<candle_core::Error> for BackendError {
    fn from(error: candle_core::Error) -> Self {
        let reason = reason(&error);
        // As the CUDA driver and cuBLAS say it.
        if reason.contains("OUT_OF_MEMORY") || reason.contains("ALLOC_FAILED") {
            return Self::OutOfMemory { backend: "candle", reason };
        }
        Self::Backend { backend: "candle", reason }
    }
}

/// x · `right` in the precision of `right`, as 32-bit floats.
fn times(x: &Tensor, right: &Tensor) -> Outcome<Tensor> {
    match right.dtype() {
        DType::F32 => Ok(x.matmul(right)?),
        narrow => Ok(x.to_dtype(narrow)?.matmul(right)?.to_dtype(DType::F32)?),
    }
}

fn soft_capped(logits: Tensor, soft_cap: Option<f32>) -> Outcome<Tensor> {
    match soft_cap {
        Some(cap) => Ok(((logits / f64::from(cap))?.tanh()? * f64::from(cap))?),
        None => Ok(logits),
    }
}

/// Mean and 1/√(variance + ε) of rows, each `[rows, 1]`; a mean of zero for RMS norm.
fn statistics(x: &Tensor, norm: &Norm<CandleBackend>) -> Outcome<(Tensor, Tensor)> {
    let mean = x.mean_keepdim(D::Minus1)?;
    let mean = if norm.kind == NormKind::Layer { mean } else { mean.zeros_like()? };
    let variance = x.broadcast_sub(&mean)?.sqr()?.mean_keepdim(D::Minus1)?;
    let inverse = (variance + f64::from(norm.epsilon))?.sqrt()?.recip()?;
    Ok((mean, inverse))
}

impl CandleBackend {
    /// Candle on `device`.
    pub fn new(device: Device) -> Self {
        let precision = if device.is_cuda() { DType::BF16 } else { DType::F32 };
        Self::with_precision(device, precision)
    }

    /// Candle on `device` with frozen weights of `precision`.
    pub fn with_precision(device: Device, precision: DType) -> Self {
        Self { crossing: Crossing::new(device), attention: Attention::default(), precision }
    }

    /// What has gone up and come down so far.
    #[cfg(test)]
    pub fn transfers(&self) -> Transfers {
        self.crossing.transfers()
    }
}

/// The rows of a segment and of what stands before it, in the order of the text.
fn seen_rows(matrix: &Tensor, segment: &Segment) -> Outcome<Tensor> {
    let mut parts = Vec::with_capacity(1 + segment.before.len());
    for rows in segment.seen() {
        parts.push(matrix.narrow(0, rows.start, rows.len())?);
    }
    match &parts[..] {
        [only] => Ok(only.clone()),
        _ => Ok(Tensor::cat(&parts, 0)?),
    }
}

impl Backend for CandleBackend {
    type Matrix = Tensor;
    type Weight = Weight;
    type Vector = Tensor;
    type Indexes = Tensor;
    type Losses = Tensor;
    type Mask = Mask;
    type Cache = Cache;
    type Prepared = Prepared;

    fn name(&self) -> &'static str {
        "candle"
    }

    fn matrix(&self, rows: usize, columns: usize, values: &[f32]) -> Outcome<Tensor> {
        self.crossing.floats(values, (rows, columns))
    }

    fn zeros(&self, rows: usize, columns: usize) -> Outcome<Tensor> {
        self.crossing.zeros(rows, columns)
    }

    fn values(&self, matrix: &Tensor) -> Outcome<Vec<f32>> {
        self.crossing.read(matrix)
    }

    fn rows(&self, matrix: &Tensor) -> usize {
        matrix.dims().first().copied().unwrap_or(0)
    }

    fn copy(&self, matrix: &Tensor) -> Outcome<Tensor> {
        // Tensors are immutable and shared: operations that write make new ones.
        Ok(matrix.clone())
    }

    fn vector(&self, values: &[f32]) -> Outcome<Tensor> {
        self.crossing.floats(values, values.len())
    }

    fn weight(
        &self,
        outputs: usize,
        inputs: usize,
        values: &[f32],
        bias: Option<&[f32]>,
        _backward: bool,
    ) -> Outcome<Weight> {
        let bias = match bias {
            Some(bias) => Some(self.vector(bias)?),
            None => None,
        };
        let weight = self.matrix(outputs, inputs, values)?.to_dtype(self.precision)?;
        Ok(Weight { weight, bias })
    }

    fn indexes(&self, values: &[u32]) -> Outcome<Tensor> {
        self.crossing.indexes(values)
    }

    fn embed(&self, table: &Weight, ids: &Tensor, scale: f32) -> Outcome<Tensor> {
        let rows = self.take_rows(&table.weight, ids)?.to_dtype(DType::F32)?;
        Ok((rows * f64::from(scale))?)
    }

    fn take_rows(&self, matrix: &Tensor, indexes: &Tensor) -> Outcome<Tensor> {
        Ok(matrix.index_select(indexes, 0)?)
    }

    fn spread_rows(&self, rows: usize, indexes: &Tensor, from: &Tensor) -> Outcome<Tensor> {
        Ok(self.zeros(rows, from.dim(1)?)?.index_add(indexes, &from.contiguous()?, 0)?)
    }

    fn take_columns(&self, matrix: &Tensor, ranges: &[Range<usize>]) -> Outcome<Tensor> {
        let mut parts = Vec::with_capacity(ranges.len());
        for range in ranges {
            parts.push(matrix.narrow(1, range.start, range.len())?);
        }
        Ok(Tensor::cat(&parts, 1)?.contiguous()?)
    }

    fn put_columns(
        &self,
        into: &mut Tensor,
        ranges: &[Range<usize>],
        from: &Tensor,
    ) -> Outcome<()> {
        // Copies share their memory, and `slice_set` writes in place.
        *into = into.copy()?;
        let mut first = 0;
        for range in ranges {
            let part = from.narrow(1, first, range.len())?.contiguous()?;
            into.slice_set(&part, 1, range.start)?;
            first += range.len();
        }
        Ok(())
    }

    fn append_rows(&self, matrix: &mut Tensor, more: &Tensor) -> Outcome<()> {
        *matrix = Tensor::cat(&[&*matrix, more], 0)?;
        Ok(())
    }

    fn add(&self, into: &mut Tensor, from: &Tensor) -> Outcome<()> {
        *into = (&*into + from)?;
        Ok(())
    }

    fn linear(&self, x: &Tensor, weight: &Weight) -> Outcome<Tensor> {
        weight.forward(x)
    }

    fn linear_backward(
        &self,
        gradient: &Tensor,
        weight: &Weight,
        into: Option<Tensor>,
    ) -> Outcome<Tensor> {
        let made = times(gradient, &weight.weight)?;
        match into {
            Some(into) => Ok((into + made)?),
            None => Ok(made),
        }
    }

    fn lora(
        &self,
        x: &Tensor,
        pair: &LoraPair<Self>,
        scale: f32,
        y: &mut Tensor,
    ) -> Outcome<Tensor> {
        let inner = x.matmul(&pair.a.t()?)?;
        *y = (&*y + (inner.matmul(&pair.b.t()?)? * f64::from(scale))?)?;
        Ok(inner)
    }

    fn lora_backward(
        &self,
        gradient: &Tensor,
        x: &Tensor,
        inner: &Tensor,
        pair: &LoraPair<Self>,
        scale: f32,
        gradients: &mut LoraPair<Self>,
        into: Option<&mut Tensor>,
    ) -> Outcome<()> {
        let scale = f64::from(scale);
        gradients.b = (&gradients.b + (gradient.t()?.matmul(inner)? * scale)?)?;
        let inner_gradient = (gradient.matmul(&pair.b)? * scale)?;
        gradients.a = (&gradients.a + inner_gradient.t()?.matmul(x)?)?;
        if let Some(into) = into {
            *into = (&*into + inner_gradient.matmul(&pair.a)?)?;
        }
        Ok(())
    }

    fn masks(&self, draws: &[Stream], layers: &[(u64, usize)], rate: f32) -> Outcome<Vec<Mask>> {
        dropout::masks(&self.crossing, draws, layers, rate)
    }

    fn drop_out(&self, x: &Tensor, mask: &Mask) -> Outcome<Tensor> {
        dropout::apply(x, mask)
    }

    fn norm(&self, x: &Tensor, norm: &Norm<Self>) -> Outcome<Tensor> {
        let dims = x.dims2()?;
        let x = x.reshape(((), norm.width))?;
        let (mean, inverse) = statistics(&x, norm)?;
        let y = x.broadcast_sub(&mean)?.broadcast_mul(&inverse)?.broadcast_mul(&norm.weight)?;
        let y = match &norm.bias {
            Some(bias) => y.broadcast_add(bias)?,
            None => y,
        };
        Ok(y.reshape(dims)?)
    }

    fn norm_backward(&self, gradient: Tensor, x: &Tensor, norm: &Norm<Self>) -> Outcome<Tensor> {
        let dims = x.dims2()?;
        let x = x.reshape(((), norm.width))?;
        let (mean, inverse) = statistics(&x, norm)?;
        let normalised = x.broadcast_sub(&mean)?.broadcast_mul(&inverse)?;
        let gradient = gradient.reshape(((), norm.width))?.broadcast_mul(&norm.weight)?;
        let along = (&gradient * &normalised)?.mean_keepdim(D::Minus1)?;
        let mut made = (&gradient - normalised.broadcast_mul(&along)?)?;
        if norm.kind == NormKind::Layer {
            made = made.broadcast_sub(&gradient.mean_keepdim(D::Minus1)?)?;
        }
        Ok(made.broadcast_mul(&inverse)?.reshape(dims)?)
    }

    fn rotate(
        &self,
        x: &mut Tensor,
        head_dim: usize,
        table: &RopeTable<Self>,
        positions: &Tensor,
        back: bool,
    ) -> Outcome<()> {
        if table.half == 0 {
            return Ok(());
        }
        let dims = x.dims2()?;
        let heads = x.reshape((dims.0, dims.1 / head_dim, head_dim))?;
        let cos = self.take_rows(&table.cos, positions)?.unsqueeze(1)?;
        let mut sin = self.take_rows(&table.sin, positions)?.unsqueeze(1)?;
        if back {
            sin = sin.neg()?;
        }
        let low = heads.narrow(2, 0, table.half)?;
        let high = heads.narrow(2, table.half, table.half)?;
        let new_low = (low.broadcast_mul(&cos)? - high.broadcast_mul(&sin)?)?;
        let new_high = (high.broadcast_mul(&cos)? + low.broadcast_mul(&sin)?)?;
        let rest = head_dim - 2 * table.half;
        let turned = match rest {
            0 => Tensor::cat(&[new_low, new_high], 2)?,
            _ => Tensor::cat(&[new_low, new_high, heads.narrow(2, 2 * table.half, rest)?], 2)?,
        };
        *x = turned.reshape(dims)?;
        Ok(())
    }

    fn activate(&self, curve: Activation, gate: &Tensor, up: Option<&Tensor>) -> Outcome<Tensor> {
        let value = activation::value(curve, gate)?;
        match up {
            Some(up) => Ok((value * up)?),
            None => Ok(value),
        }
    }

    fn activate_backward(
        &self,
        curve: Activation,
        gate: Tensor,
        up: Option<Tensor>,
        gradient: &Tensor,
    ) -> Outcome<(Tensor, Option<Tensor>)> {
        let (value, slope) = activation::value_and_slope(curve, &gate)?;
        let Some(up) = up else {
            return Ok(((gradient * slope)?, None));
        };
        let gate_gradient = ((gradient * up)? * slope)?;
        Ok((gate_gradient, Some((gradient * value)?)))
    }

    fn attention(
        &self,
        queries: &Tensor,
        keys: &Tensor,
        values: &Tensor,
        segments: &[Segment],
        shape: &AttentionShape,
    ) -> Outcome<(Tensor, Tensor)> {
        let mut outputs = Vec::with_capacity(segments.len());
        for segment in segments {
            let queries = queries.narrow(0, segment.rows.start, segment.rows.len())?;
            let parts = [&queries, &seen_rows(keys, segment)?, &seen_rows(values, segment)?];
            outputs.push(self.attention.forward(&self.crossing, parts, shape)?);
        }
        let output = Tensor::cat(&outputs, 0)?;
        // The way back wants nothing more.
        Ok((output.clone(), output))
    }

    fn attention_backward(
        &self,
        gradient: &Tensor,
        queries: &Tensor,
        keys: &Tensor,
        values: &Tensor,
        _output: &Tensor,
        _saved: &Tensor,
        segments: &[Segment],
        shape: &AttentionShape,
    ) -> Outcome<[Tensor; 3]> {
        let mut query_gradients = Vec::with_capacity(segments.len());
        // Gradients of each segment's own rows, which later segments that see them add to.
        let mut others: Vec<[Tensor; 2]> = Vec::with_capacity(segments.len());
        for segment in segments {
            let own = |matrix: &Tensor| matrix.narrow(0, segment.rows.start, segment.rows.len());
            let parts = [&own(queries)?, &seen_rows(keys, segment)?, &seen_rows(values, segment)?];
            let gradient = own(gradient)?;
            let [queries, keys, values] =
                self.attention.backward(&self.crossing, &gradient, parts, shape)?;
            query_gradients.push(queries);
            let mut first = 0;
            for rows in segment.seen() {
                let part = |matrix: &Tensor| matrix.narrow(0, first, rows.len());
                let made = [part(&keys)?, part(&values)?];
                first += rows.len();
                match segments[..others.len()].iter().position(|earlier| earlier.rows == rows) {
                    Some(earlier) => {
                        for (into, more) in others[earlier].iter_mut().zip(made) {
                            *into = (&*into + more)?;
                        }
                    }
                    None => others.push(made),
                }
            }
        }
        let [keys, values] = [0, 1].map(|which| {
            let parts: Vec<&Tensor> = others.iter().map(|two| &two[which]).collect();
            Tensor::cat(&parts, 0)
        });
        Ok([Tensor::cat(&query_gradients, 0)?, keys?, values?])
    }

    fn cache(&self, layers: usize, _shape: &AttentionShape) -> Outcome<Cache> {
        Ok(Cache::new(layers))
    }

    fn reserve(&self, _cache: &mut Cache, _tokens: usize) -> Outcome<()> {
        Ok(())
    }

    fn attend(
        &self,
        layer: usize,
        queries: &Tensor,
        keys: &Tensor,
        values: &Tensor,
        texts: &mut [RowsOfText<'_, Self>],
        shape: &AttentionShape,
    ) -> Outcome<Tensor> {
        cached::attend(self, layer, [queries, keys, values], texts, shape)
    }

    fn advance(&self, cache: &mut Cache, tokens: usize) {
        cache.advance(tokens);
    }

    fn cached(&self, cache: &Cache) -> usize {
        cache.length()
    }

    fn prepare(&self, pair: &LoraPair<Self>, scale: f32) -> Outcome<Prepared> {
        Ok(Prepared::new(pair, scale))
    }

    fn linears_of_runs<const COUNT: usize>(
        &self,
        x: &Tensor,
        weights: [&Weight; COUNT],
        runs: &[PairsOfRows<'_, Self, COUNT>],
    ) -> [Outcome<Tensor>; COUNT] {
        let mut layer = 0;
        weights.map(|weight| {
            let pairs = runs.iter().map(|run| (run.rows.clone(), run.pairs[layer]));
            let made = weight.forward(x).and_then(|y| cached::add_runs(x, y, pairs));
            layer += 1;
            made
        })
    }

    fn logits(&self, x: &Tensor, head: &Weight, soft_cap: Option<f32>) -> Outcome<Tensor> {
        soft_capped(head.forward(x)?, soft_cap)
    }

    fn head_loss(
        &self,
        x: &Tensor,
        head: &Weight,
        targets: &Tensor,
        soft_cap: Option<f32>,
        factors: Option<&[f32]>,
    ) -> Outcome<(Tensor, Option<Tensor>)> {
        loss::head_loss(&self.crossing, x, head, targets, soft_cap, factors, None)
    }

    fn row_losses(&self, losses: &Tensor) -> Outcome<Vec<RowLoss>> {
        loss::read(&self.crossing, losses)
    }

    fn trains_weights(&self) -> bool {
        true
    }

    fn weight_gradient(&self, gradient: &Tensor, x: &Tensor, into: &mut Tensor) -> Outcome<()> {
        *into = (&*into + gradient.t()?.matmul(x)?)?;
        Ok(())
    }

    fn bias_gradient(&self, gradient: &Tensor, into: &mut Tensor) -> Outcome<()> {
        let rows = gradient.reshape(((), into.dim(1)?))?;
        *into = (&*into + rows.sum_keepdim(0)?)?;
        Ok(())
    }

    fn norm_weight_gradient(
        &self,
        gradient: &Tensor,
        x: &Tensor,
        norm: &Norm<Self>,
        into: &mut Tensor,
    ) -> Outcome<()> {
        let x = x.reshape(((), norm.width))?;
        let (mean, inverse) = statistics(&x, norm)?;
        let normalised = x.broadcast_sub(&mean)?.broadcast_mul(&inverse)?;
        let gradient = gradient.reshape(((), norm.width))?;
        *into = (&*into + (gradient * normalised)?.sum_keepdim(0)?)?;
        Ok(())
    }

    fn embed_gradient(
        &self,
        gradient: &Tensor,
        ids: &Tensor,
        scale: f32,
        into: &mut Tensor,
    ) -> Outcome<()> {
        let rows = (gradient * f64::from(scale))?.contiguous()?;
        *into = into.index_add(ids, &rows, 0)?;
        Ok(())
    }

    fn head_loss_and_gradient(
        &self,
        x: &Tensor,
        head: &Weight,
        targets: &Tensor,
        soft_cap: Option<f32>,
        factors: &[f32],
        into: &mut Tensor,
    ) -> Outcome<(Tensor, Option<Tensor>)> {
        let factors = Some(factors);
        loss::head_loss(&self.crossing, x, head, targets, soft_cap, factors, Some(into))
    }

    fn replace_weight(
        &self,
        weight: &mut Weight,
        values: Option<&Tensor>,
        bias: Option<&Tensor>,
    ) -> Outcome<()> {
        // In the same precision they are shared, not copied: tensors are immutable.
        if let Some(values) = values {
            weight.weight = values.to_dtype(self.precision)?;
        }
        if let Some(bias) = bias {
            weight.bias = Some(bias.flatten_all()?);
        }
        Ok(())
    }

    fn vector_of(&self, row: &Tensor, plus: f32) -> Outcome<Tensor> {
        Ok((row.flatten_all()? + f64::from(plus))?)
    }

    fn sum_of_squares(&self, matrices: &[&Tensor]) -> Outcome<f64> {
        let mut sums = Vec::with_capacity(matrices.len());
        for matrix in matrices {
            sums.push(matrix.sqr()?.sum_all()?);
        }
        let sums = self.crossing.read(&Tensor::stack(&sums, 0)?)?;
        Ok(sums.iter().map(|sum| f64::from(*sum)).sum())
    }

    fn adamw(
        &self,
        tensors: Vec<Moved<'_, Self>>,
        step: &AdamWStep,
        gradient_factor: f64,
    ) -> Outcome<()> {
        let correction1 = 1.0 - step.beta1.powf(step.step as f64);
        let correction2 = 1.0 - step.beta2.powf(step.step as f64);
        for Moved { parameter, gradient, first, second } in tensors {
            let gradient = (gradient * gradient_factor)?;
            *first = ((&*first * step.beta1)? + (&gradient * (1.0 - step.beta1))?)?;
            *second = ((&*second * step.beta2)? + (gradient.sqr()? * (1.0 - step.beta2))?)?;
            let denominator = ((second.sqrt()? / correction2.sqrt())? + step.epsilon)?;
            let update = ((&*first / denominator)? * (step.learning_rate / correction1))?;
            let kept = (&*parameter * (1.0 - step.learning_rate * step.weight_decay))?;
            *parameter = (kept - update)?;
        }
        Ok(())
    }
}
