//! Layers, forward and backward.

use rayon::prelude::*;

use super::{CpuBackend, rows};
use crate::train::backend::cpu::buffer_pool::CpuMatrix;
use crate::train::backend::cpu::gemm::tile::AccumulateMode;
use crate::train::backend::cpu::gemm::weight::CpuWeight;
use crate::train::backend::cpu::layers::linear::{
    self, LinearOutput, MAX_LAYERS, MatrixView, PackedLinear,
};
use crate::train::backend::cpu::layers::{activation, norm, rope};
use crate::train::backend::cpu::vector;
use crate::train::backend::{
    Activation, LayerOps, LoraLinear, LoraLinearBackward, LoraOutput, LoraPair, Matrices, Norm,
    NormKind, Outcome, RopeTable,
};
use crate::train::rng::Stream;

/// A dropout mask as its random streams: it is drawn again at each use, which costs less than storing it.
pub struct CpuDropoutMask {
    draws: Vec<Stream>,
    rate: f32,
}

impl LayerOps for CpuBackend {
    type DropoutMask = CpuDropoutMask;

    fn embed(&self, table: &CpuWeight, ids: &Vec<u32>, scale: f32) -> Outcome<CpuMatrix> {
        let mut made = self.pool.acquire(ids.len(), table.forward.inputs);
        let columns = made.columns();
        for (row, id) in made.values_mut().chunks_exact_mut(columns).zip(ids) {
            table.forward.read_row(*id as usize, row);
        }
        vector::scale(self.isa, made.values_mut(), scale);
        Ok(made)
    }

    fn linear(&self, x: &CpuMatrix, weight: &CpuWeight) -> Outcome<CpuMatrix> {
        let [made] = self.linears(x, [LoraLinear { weight, pair: None }], 0.0);
        Ok(made?.0)
    }

    fn linear_backward(
        &self,
        gradient: &CpuMatrix,
        weight: &CpuWeight,
        into: Option<CpuMatrix>,
    ) -> Outcome<CpuMatrix> {
        let packed = self.transposed(weight)?;
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
        layers: [LoraLinear<'_, Self>; COUNT],
        scale: f32,
    ) -> [Outcome<LoraOutput<Self>>; COUNT] {
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
        layers: &mut [LoraLinearBackward<'_, Self>],
        scale: f32,
        wanted: bool,
    ) -> Outcome<Option<CpuMatrix>> {
        let mut gradients = [MatrixView { values: &[], columns: 0 }; MAX_LAYERS];
        let mut packed = [const { PackedLinear::EMPTY }; MAX_LAYERS];
        let mut inner = [const { None }; MAX_LAYERS];
        for (index, layer) in layers.iter().enumerate() {
            gradients[index] = rows(layer.gradient);
            packed[index].weight = Some(self.transposed(layer.weight)?);
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

    fn dropout_masks(
        &self,
        draws: &[Stream],
        layers: &[(u64, usize)],
        rate: f32,
    ) -> Outcome<Vec<CpuDropoutMask>> {
        let of = |(layer, _columns): &(u64, usize)| CpuDropoutMask {
            draws: draws.iter().map(|draw| draw.child(*layer)).collect(),
            rate,
        };
        Ok(layers.iter().map(of).collect())
    }

    fn apply_dropout(&self, x: &CpuMatrix, mask: &CpuDropoutMask) -> Outcome<CpuMatrix> {
        let CpuDropoutMask { draws, rate } = mask;
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
        backward: bool,
    ) -> Outcome<()> {
        if table.half == 0 {
            return Ok(());
        }
        let width = x.columns();
        let (cos, sin) = (table.cos.values(), table.sin.values());
        let values = x.values_mut();
        rope::rotate(self.isa, values, head_dim, width, cos, sin, table.half, positions, backward);
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
}
