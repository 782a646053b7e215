//! [`Backend`] on the CPU's kernels.

use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;

use super::attention::backward::{self, AttentionGradients, ForwardResult};
use super::attention::kv_cache::{CpuKvCache, PageMemory};
use super::attention::paged::NewTokens;
use super::attention::{self, AttentionInputs};
use super::buffer_pool::{BufferPool, CpuMatrix};
use super::gemm::tile::AccumulateMode;
use super::gemm::weight::CpuWeight;
use super::isa::Isa;
use super::layers::activation;
use super::layers::cross_entropy;
use super::layers::grouped_lora::{self, BaseLinear, PackedLoraGroup};
use super::layers::linear::{self, LinearOutput, MAX_LAYERS, MatrixView, PackedLinear, PackedLora};
use super::layers::norm;
use super::layers::rope;
use super::vector;
use crate::train::backend::AdamWStep;
use crate::train::backend::BackendError;
use crate::train::backend::cpu::gemm::packed_matrix::PackedMatrix;
use crate::train::backend::{Activation, NormKind};
use crate::train::backend::{
    Adapted, AdaptedBackward, AdaptedResult, AttentionShape, Backend, LoraPair, Moved, Norm,
    Outcome, PairsOfRows, RopeTable, RowLoss, RowsOfText, Segment,
};
use crate::train::rng::Stream;

/// Rows of logits in memory at once: 256 of 49,152 are 50 MB.
pub const HEAD_CHUNK: usize = 256;

/// Tensors of an adapter, some ten thousand numbers each, that an optimiser's task moves at least.
const TENSORS_PER_TASK: usize = 16;

/// The CPU, on the threads of rayon's pool.
pub struct CpuBackend {
    isa: Isa,
    pool: Arc<BufferPool>,
    page_memory: Arc<PageMemory>,
    /// Whether weights that only answer are rounded to bfloat16 also where the kernels multiply floats.
    round_to_bf16: bool,
}

impl CpuBackend {
    /// A backend on one level of instructions.
    pub fn new(isa: Isa) -> Self {
        let (pool, page_memory) =
            (Arc::new(BufferPool::default()), Arc::new(PageMemory::default()));
        Self { isa, pool, page_memory, round_to_bf16: false }
    }

    /// The same, but that weights which only answer are bfloat16 on every level of instructions.
    pub fn rounding(isa: Isa) -> Self {
        Self { round_to_bf16: true, ..Self::new(isa) }
    }

    /// Bytes of all caches' pages that exist.
    pub fn cached_bytes(&self) -> u64 {
        self.page_memory.bytes()
    }

    /// Bytes that the cache of a text takes for each page of [`PAGE_TOKENS`] tokens.
    pub fn page_bytes(&self, layers: usize, shape: &AttentionShape) -> u64 {
        CpuKvCache::page_bytes(self.isa, layers, shape)
    }

    /// `result = x · packedᵀ`.
    fn times(&self, x: MatrixView<'_>, packed: &PackedMatrix, result: &mut [f32]) {
        let layers = [PackedLinear { weight: Some(packed), bias: None, pair: None }];
        let mut results = [LinearOutput { y: result, inner: &mut [] }];
        linear::forward(self.isa, x, &layers, AccumulateMode::Overwrite, &mut results);
    }

    fn forward_pair(&self, pair: &LoraPair<Self>, scale: f32) -> PackedLora {
        PackedLora::forward(self.isa, &self.pool, &pair.a, &pair.b, scale)
    }

    fn backward_pair(&self, pair: &LoraPair<Self>, scale: f32) -> PackedLora {
        PackedLora::backward(self.isa, &self.pool, &pair.a, &pair.b, scale)
    }

    /// Wᵀ, for the way back.
    fn back<'a>(&self, weight: &'a CpuWeight) -> Outcome<&'a PackedMatrix> {
        weight.backward.as_ref().ok_or_else(|| BackendError::Backend {
            backend: self.name(),
            reason: "the model was loaded for answering, not for training".to_owned(),
        })
    }

    fn filled(&self, rows: usize, columns: usize, value: f32) -> CpuMatrix {
        let mut made = self.pool.acquire(rows, columns);
        made.values_mut().fill(value);
        made
    }
}

/// A dropout mask as what decides on it: drawn anew at each use, which costs less than to keep it.
pub struct Mask {
    draws: Vec<Stream>,
    rate: f32,
}

fn rows(matrix: &CpuMatrix) -> MatrixView<'_> {
    MatrixView { values: matrix.values(), columns: matrix.columns() }
}

/// Copies the columns in `ranges` between rows of `wide` and rows of `narrow`.
fn each_row(
    wide_columns: usize,
    narrow_columns: usize,
    ranges: &[Range<usize>],
    mut copy: impl FnMut(Range<usize>, Range<usize>),
    rows: usize,
) {
    for row in 0..rows {
        let mut into = row * narrow_columns;
        for range in ranges {
            let wide = row * wide_columns + range.start..row * wide_columns + range.end;
            copy(wide, into..into + range.len());
            into += range.len();
        }
    }
}

impl Backend for CpuBackend {
    type Matrix = CpuMatrix;
    type Weight = CpuWeight;
    type Vector = Vec<f32>;
    type Indexes = Vec<u32>;
    type Losses = Vec<RowLoss>;
    type Mask = Mask;
    type Cache = CpuKvCache;
    type Prepared = PackedLora;

    fn name(&self) -> &'static str {
        match self.isa {
            Isa::Bf16 => "cpu (bf16)",
            Isa::Avx512 => "cpu (f32, avx512)",
            Isa::Avx2 => "cpu (f32, avx2)",
            Isa::Portable => "cpu (f32, portable)",
        }
    }

    fn matrix(&self, rows: usize, columns: usize, values: &[f32]) -> Outcome<CpuMatrix> {
        let mut made = self.pool.acquire(rows, columns);
        made.values_mut().copy_from_slice(values);
        Ok(made)
    }

    fn zeros(&self, rows: usize, columns: usize) -> Outcome<CpuMatrix> {
        Ok(self.filled(rows, columns, 0.0))
    }

    fn values(&self, matrix: &CpuMatrix) -> Outcome<Vec<f32>> {
        Ok(matrix.values().to_vec())
    }

    fn rows(&self, matrix: &CpuMatrix) -> usize {
        matrix.rows()
    }

    fn copy(&self, matrix: &CpuMatrix) -> Outcome<CpuMatrix> {
        self.matrix(matrix.rows(), matrix.columns(), matrix.values())
    }

    fn vector(&self, values: &[f32]) -> Outcome<Vec<f32>> {
        Ok(values.to_vec())
    }

    fn weight(
        &self,
        outputs: usize,
        inputs: usize,
        values: &[f32],
        bias: Option<&[f32]>,
        backward: bool,
    ) -> Outcome<CpuWeight> {
        let (isa, pool) = (self.isa, &self.pool);
        let weight = match backward {
            true => CpuWeight::for_training(isa, pool, values, outputs, inputs),
            false => {
                CpuWeight::for_inference(isa, pool, values, outputs, inputs, self.round_to_bf16)
            }
        };
        Ok(CpuWeight { bias: bias.map(<[f32]>::to_vec), ..weight })
    }

    fn indexes(&self, values: &[u32]) -> Outcome<Vec<u32>> {
        Ok(values.to_vec())
    }

    fn embed(&self, table: &CpuWeight, ids: &Vec<u32>, scale: f32) -> Outcome<CpuMatrix> {
        let mut made = self.pool.acquire(ids.len(), table.forward.inputs);
        let columns = made.columns();
        for (row, id) in made.values_mut().chunks_exact_mut(columns).zip(ids) {
            table.forward.read_row(*id as usize, row);
        }
        vector::scale(self.isa, made.values_mut(), scale);
        Ok(made)
    }

    fn take_rows(&self, matrix: &CpuMatrix, indexes: &Vec<u32>) -> Outcome<CpuMatrix> {
        let columns = matrix.columns();
        let mut made = self.pool.acquire(indexes.len(), columns);
        for (row, index) in made.values_mut().chunks_exact_mut(columns).zip(indexes) {
            row.copy_from_slice(&matrix.values()[*index as usize * columns..][..columns]);
        }
        Ok(made)
    }

    fn spread_rows(&self, rows: usize, indexes: &Vec<u32>, from: &CpuMatrix) -> Outcome<CpuMatrix> {
        let columns = from.columns();
        let mut made = self.filled(rows, columns, 0.0);
        for (row, index) in from.values().chunks_exact(columns).zip(indexes) {
            made.values_mut()[*index as usize * columns..][..columns].copy_from_slice(row);
        }
        Ok(made)
    }

    fn take_columns(&self, matrix: &CpuMatrix, ranges: &[Range<usize>]) -> Outcome<CpuMatrix> {
        let columns = ranges.iter().map(Range::len).sum();
        let mut made = self.pool.acquire(matrix.rows(), columns);
        let (from, into) = (matrix.values(), made.values_mut());
        let copy = |wide: Range<usize>, narrow: Range<usize>| {
            into[narrow].copy_from_slice(&from[wide]);
        };
        each_row(matrix.columns(), columns, ranges, copy, matrix.rows());
        Ok(made)
    }

    fn put_columns(
        &self,
        into: &mut CpuMatrix,
        ranges: &[Range<usize>],
        from: &CpuMatrix,
    ) -> Outcome<()> {
        let (wide_columns, rows) = (into.columns(), into.rows());
        let (into, values) = (into.values_mut(), from.values());
        let copy = |wide: Range<usize>, narrow: Range<usize>| {
            into[wide].copy_from_slice(&values[narrow]);
        };
        each_row(wide_columns, from.columns(), ranges, copy, rows);
        Ok(())
    }

    fn append_rows(&self, matrix: &mut CpuMatrix, more: &CpuMatrix) -> Outcome<()> {
        matrix.append(more);
        Ok(())
    }

    fn add(&self, into: &mut CpuMatrix, from: &CpuMatrix) -> Outcome<()> {
        const PART: usize = 16 * 1024;
        let parts = into.values_mut().par_chunks_mut(PART).zip(from.values().par_chunks(PART));
        parts.for_each(|(into, from)| vector::add_scaled(self.isa, into, from, 1.0));
        Ok(())
    }

    fn linear(&self, x: &CpuMatrix, weight: &CpuWeight) -> Outcome<CpuMatrix> {
        let [made] = self.linears(x, [Adapted { weight, pair: None }], 0.0);
        Ok(made?.0)
    }

    fn linear_backward(
        &self,
        gradient: &CpuMatrix,
        weight: &CpuWeight,
        into: Option<CpuMatrix>,
    ) -> Outcome<CpuMatrix> {
        let packed = self.back(weight)?;
        let store =
            if into.is_some() { AccumulateMode::AddScaled(1.0) } else { AccumulateMode::Overwrite };
        let mut into = into.unwrap_or_else(|| self.pool.acquire(gradient.rows(), packed.outputs));
        let layers = [PackedLinear { weight: Some(packed), bias: None, pair: None }];
        let result = Some(into.values_mut());
        linear::backward(self.isa, &[rows(gradient)], &layers, store, result, &mut [&mut []]);
        Ok(into)
    }

    fn lora(
        &self,
        x: &CpuMatrix,
        pair: &LoraPair<Self>,
        scale: f32,
        y: &mut CpuMatrix,
    ) -> Outcome<CpuMatrix> {
        let mut inner = self.pool.acquire(x.rows(), pair.a.rows());
        let layers =
            [PackedLinear { weight: None, bias: None, pair: Some(self.forward_pair(pair, scale)) }];
        let mut results = [LinearOutput { y: y.values_mut(), inner: inner.values_mut() }];
        linear::forward(self.isa, rows(x), &layers, AccumulateMode::AddScaled(1.0), &mut results);
        Ok(inner)
    }

    fn lora_backward(
        &self,
        gradient: &CpuMatrix,
        x: &CpuMatrix,
        inner: &CpuMatrix,
        pair: &LoraPair<Self>,
        scale: f32,
        gradients: &mut LoraPair<Self>,
        into: Option<&mut CpuMatrix>,
    ) -> Outcome<()> {
        let mut inner_gradient = self.pool.acquire(x.rows(), pair.a.rows());
        let layers = [PackedLinear {
            weight: None,
            bias: None,
            pair: Some(self.backward_pair(pair, scale)),
        }];
        let (store, into) = (AccumulateMode::AddScaled(1.0), into.map(CpuMatrix::values_mut));
        let made = &mut [inner_gradient.values_mut()];
        linear::backward(self.isa, &[rows(gradient)], &layers, store, into, made);
        linear::pair_gradients(
            self.isa,
            &self.pool,
            rows(x),
            rows(gradient),
            inner,
            &inner_gradient,
            scale,
            gradients.a.values_mut(),
            gradients.b.values_mut(),
        );
        Ok(())
    }

    fn linears<const COUNT: usize>(
        &self,
        x: &CpuMatrix,
        layers: [Adapted<'_, Self>; COUNT],
        scale: f32,
    ) -> [Outcome<AdaptedResult<Self>>; COUNT] {
        let mut made = layers.each_ref().map(|layer| {
            let y = self.pool.acquire(x.rows(), layer.weight.forward.outputs);
            let inner = layer.pair.map(|pair| self.pool.acquire(x.rows(), pair.a.rows()));
            (y, inner)
        });
        let layers = layers.map(|layer| PackedLinear {
            weight: Some(&layer.weight.forward),
            bias: layer.weight.bias.as_deref(),
            pair: layer.pair.map(|pair| self.forward_pair(pair, scale)),
        });
        let mut results = made.each_mut().map(|(y, inner)| LinearOutput {
            y: y.values_mut(),
            inner: inner.as_mut().map_or(&mut [], CpuMatrix::values_mut),
        });
        linear::forward(self.isa, rows(x), &layers, AccumulateMode::Overwrite, &mut results);
        made.map(Ok)
    }

    fn linears_backward(
        &self,
        x: &CpuMatrix,
        layers: &mut [AdaptedBackward<'_, Self>],
        scale: f32,
        wanted: bool,
    ) -> Outcome<Option<CpuMatrix>> {
        let mut gradients = [MatrixView { values: &[], columns: 0 }; MAX_LAYERS];
        let mut packed = [const { PackedLinear::EMPTY }; MAX_LAYERS];
        let mut inner = [const { None }; MAX_LAYERS];
        for (index, layer) in layers.iter().enumerate() {
            gradients[index] = rows(layer.gradient);
            packed[index].weight = Some(self.back(layer.weight)?);
            let Some(pair) = &layer.pair else { continue };
            packed[index].pair = Some(self.backward_pair(pair.pair, scale));
            inner[index] = Some(self.pool.acquire(x.rows(), pair.pair.a.rows()));
        }
        let mut into = wanted.then(|| self.pool.acquire(x.rows(), x.columns()));
        let mut inner_values = inner.each_mut().map(|inner| {
            inner.as_mut().map_or(&mut [][..], |inner: &mut CpuMatrix| inner.values_mut())
        });
        let count = layers.len();
        linear::backward(
            self.isa,
            &gradients[..count],
            &packed[..count],
            AccumulateMode::Overwrite,
            into.as_mut().map(CpuMatrix::values_mut),
            &mut inner_values[..count],
        );
        for ((layer, gradient), inner_gradient) in layers.iter_mut().zip(gradients).zip(&inner) {
            let (Some(pair), Some(inner_gradient)) = (&mut layer.pair, inner_gradient) else {
                continue;
            };
            linear::pair_gradients(
                self.isa,
                &self.pool,
                rows(x),
                gradient,
                pair.inner,
                inner_gradient,
                scale,
                pair.gradients.a.values_mut(),
                pair.gradients.b.values_mut(),
            );
        }
        Ok(into)
    }

    fn masks(&self, draws: &[Stream], layers: &[(u64, usize)], rate: f32) -> Outcome<Vec<Mask>> {
        let of = |(layer, _columns): &(u64, usize)| Mask {
            draws: draws.iter().map(|draw| draw.child(*layer)).collect(),
            rate,
        };
        Ok(layers.iter().map(of).collect())
    }

    fn drop_out(&self, x: &CpuMatrix, mask: &Mask) -> Outcome<CpuMatrix> {
        let Mask { draws, rate } = mask;
        let mut made = self.pool.acquire(x.rows(), x.columns());
        let columns = x.columns().max(1);
        let kept = 1.0 / (1.0 - *rate);
        let rows = made.values_mut().par_chunks_exact_mut(columns);
        rows.zip(x.values().par_chunks_exact(columns)).zip(draws).for_each(|((made, x), draw)| {
            for (column, (made, x)) in made.iter_mut().zip(x).enumerate() {
                *made = if draw.unit(column as u64) < *rate { 0.0 } else { x * kept };
            }
        });
        Ok(made)
    }

    fn norm(&self, x: &CpuMatrix, constants: &Norm<Self>) -> Outcome<CpuMatrix> {
        let mut y = self.pool.acquire(x.rows(), x.columns());
        norm::forward(
            self.isa,
            x.values(),
            &constants.weight,
            constants.bias.as_deref(),
            constants.epsilon,
            y.values_mut(),
        );
        Ok(y)
    }

    fn norm_backward(
        &self,
        mut gradient: CpuMatrix,
        x: &CpuMatrix,
        constants: &Norm<Self>,
    ) -> Outcome<CpuMatrix> {
        let is_layer_norm = constants.kind == NormKind::Layer;
        norm::backward(
            self.isa,
            x.values(),
            &constants.weight,
            is_layer_norm,
            constants.epsilon,
            gradient.values_mut(),
        );
        Ok(gradient)
    }

    fn rotate(
        &self,
        x: &mut CpuMatrix,
        head_dim: usize,
        table: &RopeTable<Self>,
        positions: &Vec<u32>,
        back: bool,
    ) -> Outcome<()> {
        if table.half == 0 {
            return Ok(());
        }
        let width = x.columns();
        let (cos, sin) = (table.cos.values(), table.sin.values());
        let values = x.values_mut();
        rope::rotate(self.isa, values, head_dim, width, cos, sin, table.half, positions, back);
        Ok(())
    }

    fn activate(
        &self,
        activation: Activation,
        gate: &CpuMatrix,
        up: Option<&CpuMatrix>,
    ) -> Outcome<CpuMatrix> {
        let mut out = self.pool.acquire(gate.rows(), gate.columns());
        let into = out.values_mut();
        match up {
            Some(up) => {
                activation::gated_forward(self.isa, activation, gate.values(), up.values(), into);
            }
            None => activation::forward(self.isa, activation, gate.values(), into),
        }
        Ok(out)
    }

    fn activate_backward(
        &self,
        activation: Activation,
        mut gate: CpuMatrix,
        up: Option<CpuMatrix>,
        gradient: &CpuMatrix,
    ) -> Outcome<(CpuMatrix, Option<CpuMatrix>)> {
        let Some(mut up) = up else {
            let mut made = self.copy(gradient)?;
            activation::backward(self.isa, activation, gate.values(), made.values_mut());
            return Ok((made, None));
        };
        let (gate_values, up_values) = (gate.values_mut(), up.values_mut());
        activation::gated_backward(self.isa, activation, gate_values, up_values, gradient.values());
        Ok((gate, Some(up)))
    }

    fn attention(
        &self,
        queries: &CpuMatrix,
        keys: &CpuMatrix,
        values: &CpuMatrix,
        segments: &[Segment],
        shape: &AttentionShape,
    ) -> Outcome<(CpuMatrix, CpuMatrix)> {
        let mut output = self.pool.acquire(queries.rows(), queries.columns());
        let mut log_sums = self.pool.acquire(shape.heads, queries.rows());
        let (queries, keys, values) = (queries.values(), keys.values(), values.values());
        let inputs = AttentionInputs { queries, keys, values };
        let (into, sums) = (output.values_mut(), log_sums.values_mut());
        attention::forward::forward(self.isa, &self.pool, &inputs, segments, shape, into, sums);
        Ok((output, log_sums))
    }

    fn attention_backward(
        &self,
        gradient: &CpuMatrix,
        queries: &CpuMatrix,
        keys: &CpuMatrix,
        values: &CpuMatrix,
        output: &CpuMatrix,
        saved: &CpuMatrix,
        segments: &[Segment],
        shape: &AttentionShape,
    ) -> Outcome<[CpuMatrix; 3]> {
        let mut made = [queries, keys, values]
            .map(|matrix| self.pool.acquire(matrix.rows(), matrix.columns()));
        let inputs = AttentionInputs {
            queries: queries.values(),
            keys: keys.values(),
            values: values.values(),
        };
        let [query_gradient, key_gradient, value_gradient] = &mut made;
        let gradients = AttentionGradients {
            queries: query_gradient.values_mut(),
            keys: key_gradient.values_mut(),
            values: value_gradient.values_mut(),
        };
        let made_forward = ForwardResult {
            output: output.values(),
            log_sums: saved.values(),
            gradient: gradient.values(),
        };
        backward::backward(self.isa, &self.pool, &inputs, segments, shape, made_forward, gradients);
        Ok(made)
    }

    fn cache(&self, layers: usize, shape: &AttentionShape) -> Outcome<CpuKvCache> {
        Ok(CpuKvCache::new(self.isa, layers, shape, &self.page_memory))
    }

    fn reserve(&self, cache: &mut CpuKvCache, tokens: usize) -> Outcome<()> {
        cache.reserve(tokens);
        Ok(())
    }

    fn attend(
        &self,
        layer: usize,
        queries: &CpuMatrix,
        keys: &CpuMatrix,
        values: &CpuMatrix,
        texts: &mut [RowsOfText<'_, Self>],
        shape: &AttentionShape,
    ) -> Outcome<CpuMatrix> {
        let width = keys.columns();
        for RowsOfText { rows, cache } in texts.iter_mut() {
            let part = rows.start * width..rows.end * width;
            cache.write(layer, &keys.values()[part.clone()], &values.values()[part]);
        }
        let mut output = self.pool.acquire(queries.rows(), queries.columns());
        let mut new = Vec::with_capacity(texts.len());
        for RowsOfText { rows, cache } in texts.iter() {
            new.push(NewTokens { rows: rows.clone(), cache });
        }
        let into = output.values_mut();
        attention::paged::forward(self.isa, layer, queries.values(), &new, shape, into);
        Ok(output)
    }

    fn advance(&self, cache: &mut CpuKvCache, tokens: usize) {
        cache.advance(tokens);
    }

    fn cached(&self, cache: &CpuKvCache) -> usize {
        cache.length()
    }

    fn prepare(&self, pair: &LoraPair<Self>, scale: f32) -> Outcome<PackedLora> {
        Ok(self.forward_pair(pair, scale))
    }

    fn linears_of_runs<const COUNT: usize>(
        &self,
        x: &CpuMatrix,
        weights: [&CpuWeight; COUNT],
        runs: &[PairsOfRows<'_, Self, COUNT>],
    ) -> [Outcome<CpuMatrix>; COUNT] {
        let mut made = weights.map(|weight| self.pool.acquire(x.rows(), weight.forward.outputs));
        let layers = weights
            .map(|weight| BaseLinear { weight: &weight.forward, bias: weight.bias.as_deref() });
        let runs: Vec<PackedLoraGroup<'_>> = runs
            .iter()
            .map(|run| {
                let mut pairs = [None; MAX_LAYERS];
                for (into, pair) in pairs.iter_mut().zip(run.pairs) {
                    *into = pair;
                }
                PackedLoraGroup { rows: run.rows.clone(), pairs }
            })
            .collect();
        let mut results = made.each_mut().map(CpuMatrix::values_mut);
        grouped_lora::forward(self.isa, &self.pool, rows(x), &layers, &runs, &mut results);
        made.map(Ok)
    }

    fn logits(&self, x: &CpuMatrix, head: &CpuWeight, soft_cap: Option<f32>) -> Outcome<CpuMatrix> {
        let [logits] = self.linears_of_runs(x, [head], &[]);
        let mut logits = logits?;
        if let Some(cap) = soft_cap {
            vector::soft_cap(self.isa, logits.values_mut(), cap);
        }
        Ok(logits)
    }

    fn head_loss(
        &self,
        x: &CpuMatrix,
        head: &CpuWeight,
        targets: &Vec<u32>,
        soft_cap: Option<f32>,
        factors: Option<&[f32]>,
    ) -> Outcome<(Vec<RowLoss>, Option<CpuMatrix>)> {
        let mut losses = vec![RowLoss::default(); targets.len()];
        let mut gradient = factors.map(|_| self.pool.acquire(x.rows(), x.columns()));
        for first in (0..targets.len()).step_by(HEAD_CHUNK) {
            let rows = (targets.len() - first).min(HEAD_CHUNK);
            let columns = x.columns();
            let chunk =
                MatrixView { values: &x.values()[first * columns..][..rows * columns], columns };
            let mut logits = self.pool.acquire(rows, head.forward.outputs);
            self.times(chunk, &head.forward, logits.values_mut());
            let mut scales = self.pool.acquire(1, rows);
            let backward = factors.map(|factors| cross_entropy::Backward {
                factors: &factors[first..first + rows],
                scales: scales.values_mut(),
            });
            cross_entropy::cross_entropy(
                self.isa,
                logits.values_mut(),
                &targets[first..first + rows],
                soft_cap,
                backward,
                &mut losses[first..first + rows],
            );
            if let (Some(gradient), Some(packed)) = (&mut gradient, &head.backward) {
                let into = &mut gradient.values_mut()[first * columns..][..rows * columns];
                let logits = MatrixView { values: logits.values(), columns: logits.columns() };
                self.times(logits, packed, into);
                for (row, scale) in into.chunks_exact_mut(columns).zip(scales.values()) {
                    vector::scale(self.isa, row, *scale);
                }
            }
        }
        Ok((losses, gradient))
    }

    fn row_losses(&self, losses: &Vec<RowLoss>) -> Outcome<Vec<RowLoss>> {
        Ok(losses.clone())
    }

    fn sum_of_squares(&self, matrices: &[&CpuMatrix]) -> Outcome<f64> {
        let of = |matrix: &&CpuMatrix| vector::sum_of_squares(self.isa, matrix.values());
        Ok(matrices.iter().map(of).sum())
    }

    fn adamw(
        &self,
        tensors: Vec<Moved<'_, Self>>,
        step: &AdamWStep,
        gradient_factor: f64,
    ) -> Outcome<()> {
        let factors = super::layers::adamw::AdamWFactors::new(step, gradient_factor);
        tensors.into_par_iter().with_min_len(TENSORS_PER_TASK).for_each(|tensor| {
            let Moved { parameter, gradient, first, second } = tensor;
            super::layers::adamw::update(
                self.isa,
                parameter.values_mut(),
                gradient.values(),
                first.values_mut(),
                second.values_mut(),
                &factors,
            );
        });
        Ok(())
    }
}
