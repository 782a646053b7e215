//! [`Backend`] from plain candle operations: the oracle for the CPU's kernels, and the way onto other
//! devices. Candle's autograd is not used; each backward is written out.

use std::ops::Range;

use candle_core::{D, DType, Device, Tensor};

use super::{AttentionShape, Backend, LoraPair, Norm, Outcome, RopeTable, RowLoss};
use crate::train::config::{Activation, NormKind};
use crate::train::engine::{AdamWStep, EngineError};
use crate::train::random::Stream;

/// Rows of logits that exist at once.
const HEAD_CHUNK: usize = 256;

/// A score that a query does not see.
const UNSEEN: f32 = f32::NEG_INFINITY;

/// Candle on one device.
pub struct CandleBackend {
    device: Device,
}

/// A frozen linear layer: `[outputs, inputs]` and its bias.
pub struct Weight {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl From<candle_core::Error> for EngineError {
    fn from(error: candle_core::Error) -> Self {
        Self::Backend { backend: "candle", reason: error.to_string() }
    }
}

impl CandleBackend {
    /// Candle on `device`.
    pub fn new(device: Device) -> Self {
        Self { device }
    }

    /// What keys a query sees, added to scores: 0 or -∞, `[queries, keys]`; the queries are the
    /// last of the keys.
    fn mask(&self, queries: usize, keys: usize, window: Option<usize>) -> Outcome<Tensor> {
        let before = keys - queries;
        let mut values = Vec::with_capacity(queries * keys);
        for query in 0..queries {
            let row = before + query;
            let first = window.map_or(0, |window| (row + 1).saturating_sub(window));
            values.extend(
                (0..keys).map(|key| if (first..=row).contains(&key) { 0.0 } else { UNSEEN }),
            );
        }
        Ok(Tensor::from_vec(values, (queries, keys), &self.device)?)
    }

    /// Rows of one segment as `[heads, tokens, head_dim]`.
    fn heads(rows: &Tensor, heads: usize, head_dim: usize) -> Outcome<Tensor> {
        let tokens = rows.dim(0)?;
        Ok(rows.reshape((tokens, heads, head_dim))?.transpose(0, 1)?.contiguous()?)
    }

    /// `[heads, tokens, head_dim]` back to rows.
    fn rows_of_heads(heads: &Tensor) -> Outcome<Tensor> {
        let (count, tokens, width) = heads.dims3()?;
        Ok(heads.transpose(0, 1)?.reshape((tokens, count * width))?)
    }

    /// Probabilities `[kv_heads, group · queries, keys]`, and the derivative of the soft cap where
    /// there is one. `queries` is `[kv_heads, group · queries, head_dim]`.
    fn probabilities(
        &self,
        queries: &Tensor,
        keys: &Tensor,
        shape: &AttentionShape,
    ) -> Outcome<(Tensor, Option<Tensor>)> {
        let group = shape.heads / shape.kv_heads;
        let (kv_heads, grouped, _) = queries.dims3()?;
        let (tokens, all) = (grouped / group, keys.dim(1)?);
        let mut scores = (queries.matmul(&keys.t()?)? * f64::from(shape.scale))?;
        let mut bend = None;
        if let Some(cap) = shape.soft_cap {
            let bent = (scores / f64::from(cap))?.tanh()?;
            bend = Some((1.0 - bent.sqr()?)?);
            scores = (bent * f64::from(cap))?;
        }
        let mask = self.mask(tokens, all, shape.window)?;
        let scores = scores.reshape((kv_heads, group, tokens, all))?.broadcast_add(&mask)?;
        let probabilities = candle_nn::ops::softmax_last_dim(&scores.contiguous()?)?;
        Ok((probabilities.reshape((kv_heads, grouped, all))?, bend))
    }

    /// Splits the heads of queries by the key head that they share.
    fn grouped(queries: &Tensor, shape: &AttentionShape) -> Outcome<Tensor> {
        let (heads, tokens, width) = queries.dims3()?;
        let group = heads / shape.kv_heads;
        Ok(queries.reshape((shape.kv_heads, group * tokens, width))?)
    }

    fn attend_segment(
        &self,
        queries: &Tensor,
        keys: &Tensor,
        values: &Tensor,
        shape: &AttentionShape,
    ) -> Outcome<Tensor> {
        let queries = Self::heads(queries, shape.heads, shape.head_dim)?;
        let dims = queries.dims3()?;
        let queries = Self::grouped(&queries, shape)?;
        let keys = Self::heads(keys, shape.kv_heads, shape.head_dim)?;
        let values = Self::heads(values, shape.kv_heads, shape.head_dim)?;
        let (probabilities, _) = self.probabilities(&queries, &keys, shape)?;
        let output = probabilities.matmul(&values)?.reshape(dims)?;
        Self::rows_of_heads(&output)
    }

    /// Mean and 1/√(variance + ε) of rows, each `[rows, 1]`; a mean of zero for RMS norm.
    fn statistics(x: &Tensor, norm: &Norm<Self>) -> Outcome<(Tensor, Tensor)> {
        let mean = x.mean_keepdim(D::Minus1)?;
        let mean = if norm.kind == NormKind::Layer { mean } else { mean.zeros_like()? };
        let variance = x.broadcast_sub(&mean)?.sqr()?.mean_keepdim(D::Minus1)?;
        let inverse = (variance + f64::from(norm.epsilon))?.sqrt()?.recip()?;
        Ok((mean, inverse))
    }

    /// The curve and its derivative.
    fn curve(curve: Activation, x: &Tensor) -> Outcome<(Tensor, Tensor)> {
        match curve {
            Activation::Silu => {
                let sigmoid = candle_nn::ops::sigmoid(x)?;
                let slope = ((x * (1.0 - &sigmoid)?)? + 1.0)?.mul(&sigmoid)?;
                Ok(((x * sigmoid)?, slope))
            }
            Activation::GeluTanh => {
                let root = (2.0 / std::f64::consts::PI).sqrt();
                let square = x.sqr()?;
                let inner = ((x * ((&square * 0.044715)? + 1.0)?)? * root)?;
                let bent = inner.tanh()?;
                let inner_slope = (((square * (3.0 * 0.044715))? + 1.0)? * root)?;
                let half = ((&bent + 1.0)? * 0.5)?;
                let steep = ((x * 0.5)? * (1.0 - bent.sqr()?)?)?.mul(&inner_slope)?;
                Ok(((x * &half)?, (half + steep)?))
            }
            Activation::Gelu => {
                let below = (((x / std::f64::consts::SQRT_2)?.erf()? + 1.0)? * 0.5)?;
                let density = ((x.sqr()? * -0.5)?.exp()? * (0.5 / std::f64::consts::PI).sqrt())?;
                Ok(((x * &below)?, (below + (x * density)?)?))
            }
        }
    }
}

/// Runs of rows that the segments' offsets bound: start and length.
fn spans(segments: &[usize]) -> impl Iterator<Item = (usize, usize)> {
    segments.windows(2).map(|bounds| (bounds[0], bounds[1] - bounds[0]))
}

impl Backend for CandleBackend {
    type Matrix = Tensor;
    type Weight = Weight;
    type Vector = Tensor;

    fn name(&self) -> &'static str {
        "candle"
    }

    fn matrix(&self, rows: usize, columns: usize, values: &[f32]) -> Outcome<Tensor> {
        Ok(Tensor::from_slice(values, (rows, columns), &self.device)?)
    }

    fn zeros(&self, rows: usize, columns: usize) -> Outcome<Tensor> {
        Ok(Tensor::zeros((rows, columns), DType::F32, &self.device)?)
    }

    fn values(&self, matrix: &Tensor) -> Outcome<Vec<f32>> {
        Ok(matrix.flatten_all()?.to_vec1()?)
    }

    fn rows(&self, matrix: &Tensor) -> usize {
        matrix.dims().first().copied().unwrap_or(0)
    }

    fn copy(&self, matrix: &Tensor) -> Outcome<Tensor> {
        // Tensors are immutable and shared: operations that write make new ones.
        Ok(matrix.clone())
    }

    fn vector(&self, values: &[f32]) -> Outcome<Tensor> {
        Ok(Tensor::from_slice(values, values.len(), &self.device)?)
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
        Ok(Weight { weight: self.matrix(outputs, inputs, values)?, bias })
    }

    fn embed(&self, table: &Weight, ids: &[u32], scale: f32) -> Outcome<Tensor> {
        let rows = self.take_rows(&table.weight, ids)?;
        Ok((rows * f64::from(scale))?)
    }

    fn take_rows(&self, matrix: &Tensor, indexes: &[u32]) -> Outcome<Tensor> {
        let indexes = Tensor::from_slice(indexes, indexes.len(), &self.device)?;
        Ok(matrix.index_select(&indexes, 0)?)
    }

    fn spread_rows(&self, rows: usize, indexes: &[u32], from: &Tensor) -> Outcome<Tensor> {
        let indexes = Tensor::from_slice(indexes, indexes.len(), &self.device)?;
        Ok(self.zeros(rows, from.dim(1)?)?.index_add(&indexes, &from.contiguous()?, 0)?)
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
        let rows = into.dim(0)?;
        let mut first = 0;
        for range in ranges {
            let part = from.narrow(1, first, range.len())?;
            *into = into.slice_assign(&[0..rows, range.clone()], &part)?;
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
        let y = x.matmul(&weight.weight.t()?)?;
        match &weight.bias {
            Some(bias) => Ok(y.broadcast_add(bias)?),
            None => Ok(y),
        }
    }

    fn linear_backward(
        &self,
        gradient: &Tensor,
        weight: &Weight,
        into: Option<Tensor>,
    ) -> Outcome<Tensor> {
        let made = gradient.matmul(&weight.weight)?;
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

    fn drop_out(&self, x: &Tensor, draws: &[Stream], rate: f32) -> Outcome<Tensor> {
        let columns = x.dim(1)?;
        let kept = 1.0 / (1.0 - rate);
        let mut mask = Vec::with_capacity(draws.len() * columns);
        for draw in draws {
            mask.extend((0..columns).map(|column| match draw.unit(column as u64) < rate {
                true => 0.0,
                false => kept,
            }));
        }
        Ok((x * self.matrix(draws.len(), columns, &mask)?)?)
    }

    fn norm(&self, x: &Tensor, norm: &Norm<Self>) -> Outcome<Tensor> {
        let dims = x.dims2()?;
        let x = x.reshape(((), norm.width))?;
        let (mean, inverse) = Self::statistics(&x, norm)?;
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
        let (mean, inverse) = Self::statistics(&x, norm)?;
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
        positions: &[u32],
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
        let value = match curve {
            Activation::Silu => gate.silu()?,
            Activation::GeluTanh => gate.gelu()?,
            Activation::Gelu => gate.gelu_erf()?,
        };
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
        let (value, slope) = Self::curve(curve, &gate)?;
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
        segments: &[usize],
        shape: &AttentionShape,
    ) -> Outcome<(Tensor, Tensor)> {
        let mut outputs = Vec::with_capacity(segments.len());
        for (start, length) in spans(segments) {
            let part = |matrix: &Tensor| matrix.narrow(0, start, length);
            outputs.push(self.attend_segment(
                &part(queries)?,
                &part(keys)?,
                &part(values)?,
                shape,
            )?);
        }
        Ok((Tensor::cat(&outputs, 0)?, self.zeros(0, 1)?))
    }

    fn attention_backward(
        &self,
        gradient: &Tensor,
        queries: &Tensor,
        keys: &Tensor,
        values: &Tensor,
        _output: &Tensor,
        _saved: &Tensor,
        segments: &[usize],
        shape: &AttentionShape,
    ) -> Outcome<[Tensor; 3]> {
        let mut made = [Vec::new(), Vec::new(), Vec::new()];
        for (start, length) in spans(segments) {
            let part = |matrix: &Tensor, heads: usize| -> Outcome<Tensor> {
                Self::heads(&matrix.narrow(0, start, length)?, heads, shape.head_dim)
            };
            let query_heads = part(queries, shape.heads)?;
            let dims = query_heads.dims3()?;
            let queries = Self::grouped(&query_heads, shape)?;
            let gradient = Self::grouped(&part(gradient, shape.heads)?, shape)?;
            let keys = part(keys, shape.kv_heads)?;
            let values = part(values, shape.kv_heads)?;
            let (probabilities, bend) = self.probabilities(&queries, &keys, shape)?;
            // Softmax: the score's gradient is p · (dp - Σ p · dp).
            let slopes = gradient.matmul(&values.t()?)?;
            let mean = (&probabilities * &slopes)?.sum_keepdim(D::Minus1)?;
            let mut slopes = (&probabilities * slopes.broadcast_sub(&mean)?)?;
            if let Some(bend) = bend {
                slopes = (slopes * bend)?;
            }
            let slopes = (slopes * f64::from(shape.scale))?;
            let query_gradient = slopes.matmul(&keys)?.reshape(dims)?;
            made[0].push(Self::rows_of_heads(&query_gradient)?);
            made[1].push(Self::rows_of_heads(&slopes.t()?.matmul(&queries)?)?);
            made[2].push(Self::rows_of_heads(&probabilities.t()?.matmul(&gradient)?)?);
        }
        let [queries, keys, values] = made;
        Ok([Tensor::cat(&queries, 0)?, Tensor::cat(&keys, 0)?, Tensor::cat(&values, 0)?])
    }

    fn attend(
        &self,
        queries: &Tensor,
        keys: &Tensor,
        values: &Tensor,
        shape: &AttentionShape,
    ) -> Outcome<Tensor> {
        self.attend_segment(queries, keys, values, shape)
    }

    fn logits(&self, x: &Tensor, head: &Weight, soft_cap: Option<f32>) -> Outcome<Tensor> {
        let logits = self.linear(x, head)?;
        match soft_cap {
            Some(cap) => Ok(((logits / f64::from(cap))?.tanh()? * f64::from(cap))?),
            None => Ok(logits),
        }
    }

    fn head_loss(
        &self,
        x: &Tensor,
        head: &Weight,
        targets: &[u32],
        soft_cap: Option<f32>,
        factors: Option<&[f32]>,
    ) -> Outcome<(Vec<RowLoss>, Option<Tensor>)> {
        let mut losses = Vec::with_capacity(targets.len());
        let mut gradients = Vec::new();
        for (index, targets) in targets.chunks(HEAD_CHUNK).enumerate() {
            let rows = x.narrow(0, index * HEAD_CHUNK, targets.len())?;
            let logits = self.logits(&rows, head, soft_cap)?;
            let most = logits.max_keepdim(D::Minus1)?;
            let shifted = logits.broadcast_sub(&most)?.exp()?;
            let sums = shifted.sum_keepdim(D::Minus1)?;
            let places = Tensor::from_slice(targets, (targets.len(), 1), &self.device)?;
            let at_target = logits.gather(&places, 1)?;
            let loss = ((sums.log()? + &most)? - &at_target)?;
            let best = logits.argmax(D::Minus1)?;
            let (loss, best): (Vec<f32>, Vec<u32>) =
                (loss.flatten_all()?.to_vec1()?, best.to_vec1()?);
            for ((loss, best), target) in loss.into_iter().zip(best).zip(targets) {
                losses.push(RowLoss { loss, correct: best == *target });
            }
            let Some(factors) = factors else { continue };
            let factors = &factors[index * HEAD_CHUNK..][..targets.len()];
            let factors = Tensor::from_slice(factors, (targets.len(), 1), &self.device)?;
            let chosen = at_target.ones_like()?.neg()?;
            let mut slopes = shifted
                .broadcast_div(&sums)?
                .scatter_add(&places, &chosen, 1)?
                .broadcast_mul(&factors)?;
            if let Some(cap) = soft_cap {
                slopes = (slopes * (1.0 - (logits / f64::from(cap))?.sqr()?)?)?;
            }
            gradients.push(slopes.matmul(&head.weight)?);
        }
        let gradient = match factors {
            Some(_) => Some(Tensor::cat(&gradients, 0)?),
            None => None,
        };
        Ok((losses, gradient))
    }

    fn sum_of_squares(&self, matrix: &Tensor) -> Outcome<f64> {
        Ok(f64::from(matrix.sqr()?.sum_all()?.to_scalar::<f32>()?))
    }

    fn adamw(
        &self,
        parameter: &mut Tensor,
        gradient: &Tensor,
        first: &mut Tensor,
        second: &mut Tensor,
        step: &AdamWStep,
        gradient_factor: f64,
    ) -> Outcome<()> {
        let gradient = (gradient * gradient_factor)?;
        *first = ((&*first * step.beta1)? + (&gradient * (1.0 - step.beta1))?)?;
        *second = ((&*second * step.beta2)? + (gradient.sqr()? * (1.0 - step.beta2))?)?;
        let correction1 = 1.0 - step.beta1.powf(step.step as f64);
        let correction2 = 1.0 - step.beta2.powf(step.step as f64);
        let denominator = ((second.sqrt()? / correction2.sqrt())? + step.epsilon)?;
        let update = ((&*first / denominator)? * (step.learning_rate / correction1))?;
        let kept = (&*parameter * (1.0 - step.learning_rate * step.weight_decay))?;
        *parameter = (kept - update)?;
        Ok(())
    }
}
