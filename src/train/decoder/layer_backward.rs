//! The backward pass of one layer: MLP, attention, their norms, and the linear layers with their adapters.

use std::collections::BTreeMap;

use super::forward::AdapterContext;
use super::saved_activations::SavedActivations;
use super::trainable_state::TrainableState;
use super::{Decoder, DecoderLayer, Linear, Mlp, NormLayer, Qkv};
use crate::train::backend::{
    Backend, BackendError, LoraLinearBackward, LoraPairBackward, Outcome, Segment,
};

impl<B: Backend> Decoder<B> {
    /// The gradient of the layer's input when `below` layers want it; adds to `gradients` on the way.
    /// `seen`: the positions of the tokens and the segments' offsets.
    #[expect(clippy::too_many_arguments, reason = "a layer, its saved activations, and gradients")]
    pub(super) fn layer_backward(
        &self,
        layer: &DecoderLayer<B>,
        saved: SavedActivations<B>,
        gradient: B::Matrix,
        adapters: &AdapterContext<'_, B>,
        gradients: &mut TrainableState<B>,
        (positions, segments): (&B::Indexes, &[Segment]),
        below: bool,
    ) -> Outcome<Option<B::Matrix>> {
        let backend = &self.backend;
        let SavedActivations {
            x,
            raw_queries_and_keys,
            queries,
            keys,
            values,
            attended,
            attention,
            middle,
            before_post_norms,
            gate,
            up,
            inner,
        } = saved;
        let mut pass = LayerBackward { decoder: self, adapters, gradients, inner: &inner };
        let (before_attention_post_norm, before_mlp_post_norm) = match before_post_norms {
            Some([first, second]) => (Some(first), Some(second)),
            None => (None, None),
        };

        // The MLP.
        let mlp_gradient = match (&layer.post_norms, &before_mlp_post_norm) {
            (Some([_, norm]), Some(before)) => {
                Some(pass.norm(norm, backend.copy(&gradient)?, before)?)
            }
            _ => None,
        };
        let mlp_input = middle.as_ref().unwrap_or(&x);
        let from_mlp =
            pass.mlp(layer, mlp_gradient.as_ref().unwrap_or(&gradient), mlp_input, gate, up)?;
        let through_mlp = pass.norm(&layer.mlp_norm, from_mlp, mlp_input)?;

        // The gradient of attention's output, and that of the residual stream.
        let is_parallel = self.config.parallel_residual;
        let mut stream = gradient;
        if !is_parallel {
            backend.add(&mut stream, &through_mlp)?;
        }
        let output_gradient = match (&layer.post_norms, &before_attention_post_norm) {
            (Some([norm, _]), Some(before)) => {
                Some(pass.norm(norm, backend.copy(&stream)?, before)?)
            }
            _ => None,
        };
        let output_gradient = output_gradient.as_ref().unwrap_or(&stream);
        let attended_gradient = pass.linear(&layer.output, output_gradient, &attended)?;
        let [mut query_gradient, mut key_gradient, value_gradient] = backend.attention_backward(
            &attended_gradient,
            &queries,
            &keys,
            &values,
            &attended,
            &attention,
            segments,
            &layer.attention,
        )?;
        drop(attended_gradient);
        if let Some(table) = layer.rope.map(|rope| &self.tables[rope]) {
            let head_dim = layer.attention.head_dim;
            backend.rotate(&mut query_gradient, head_dim, table, positions, true)?;
            backend.rotate(&mut key_gradient, head_dim, table, positions, true)?;
        }
        if let (Some([query_norm, key_norm]), Some([raw_queries, raw_keys])) =
            (&layer.qk_norms, &raw_queries_and_keys)
        {
            query_gradient = pass.norm(query_norm, query_gradient, raw_queries)?;
            key_gradient = pass.norm(key_norm, key_gradient, raw_keys)?;
        }
        let made = [query_gradient, key_gradient, value_gradient];
        let wanted = below || pass.gradients.tensors.get(layer.attention_norm.tensor).is_some();
        let Some(from_attention) = pass.qkv(layer, &made, &x, wanted)? else {
            return Ok(None);
        };
        let through_attention = pass.norm(&layer.attention_norm, from_attention, &x)?;
        if !below {
            return Ok(None);
        }
        backend.add(&mut stream, &through_attention)?;
        if is_parallel {
            backend.add(&mut stream, &through_mlp)?;
        }
        Ok(Some(stream))
    }
}

/// The backward pass of one layer, with the gradients that it adds to.
struct LayerBackward<'a, B: Backend> {
    decoder: &'a Decoder<B>,
    adapters: &'a AdapterContext<'a, B>,
    gradients: &'a mut TrainableState<B>,
    inner: &'a BTreeMap<usize, B::Matrix>,
}

impl<B: Backend> LayerBackward<'_, B> {
    /// The gradient of a norm's input; adds those of its weight and bias where they train.
    fn norm(
        &mut self,
        layer: &NormLayer<B>,
        gradient: B::Matrix,
        x: &B::Matrix,
    ) -> Outcome<B::Matrix> {
        self.decoder.norm_backward(layer, gradient, x, self.gradients)
    }

    /// The gradient of a linear layer's input; adds the gradients of its trainable parameters.
    fn linear(
        &mut self,
        linear: &Linear<B>,
        gradient: &B::Matrix,
        x: &B::Matrix,
    ) -> Outcome<B::Matrix> {
        self.linears_to_input(&[(linear, gradient)], x)
    }

    /// The gradient of the common input of several layers.
    fn linears_to_input(
        &mut self,
        linears: &[(&Linear<B>, &B::Matrix)],
        x: &B::Matrix,
    ) -> Outcome<B::Matrix> {
        let made = self.linears(linears, x, true)?;
        made.ok_or_else(|| BackendError::Backend {
            backend: self.decoder.backend.name(),
            reason: "it computed no gradient of a layer's input".to_owned(),
        })
    }

    /// The gradient of the common input of several layers, where `wanted`; adds the gradients of their trainable
    /// parameters.
    fn linears(
        &mut self,
        linears: &[(&Linear<B>, &B::Matrix)],
        x: &B::Matrix,
        wanted: bool,
    ) -> Outcome<Option<B::Matrix>> {
        for (linear, gradient) in linears {
            self.own(linear, gradient, x)?;
        }
        let backend = &self.decoder.backend;
        if self.adapters.has_dropout() {
            // Each pair has read a copy of its own.
            let mut into = None;
            for (linear, gradient) in linears {
                if wanted {
                    into = Some(backend.linear_backward(gradient, &linear.weight, into)?);
                }
                self.lora_with_dropout(linear, gradient, x, into.as_mut())?;
            }
            return Ok(into);
        }
        let scale = self.adapters.adapter.map_or(0.0, |adapter| adapter.scale);
        // The gradients of several pairs change at once: they are taken out for this time.
        let mut taken = Vec::with_capacity(linears.len());
        for (linear, _) in linears {
            let pairs = self.gradients.adapter.as_mut().map(|adapter| &mut adapter.pairs);
            taken.push(pairs.and_then(|pairs| pairs[linear.pair].take()));
        }
        let mut layers = Vec::with_capacity(linears.len());
        for ((linear, gradient), gradients) in linears.iter().zip(&mut taken) {
            let pair =
                self.adapters.adapter.and_then(|adapter| adapter.pairs[linear.pair].as_ref());
            let inner = self.inner.get(&linear.pair);
            let pair = match (pair, inner, gradients.as_mut()) {
                (Some(pair), Some(inner), Some(gradients)) => {
                    Some(LoraPairBackward { pair, inner, gradients })
                }
                _ => None,
            };
            layers.push(LoraLinearBackward { gradient: *gradient, weight: &linear.weight, pair });
        }
        let made = backend.linears_backward(x, &mut layers, scale, wanted);
        for ((linear, _), gradients) in linears.iter().zip(taken) {
            if let Some(adapter) = self.gradients.adapter.as_mut() {
                adapter.pairs[linear.pair] = gradients;
            }
        }
        made
    }

    /// Adds the gradients of a layer's own weight and bias where they train.
    fn own(&mut self, linear: &Linear<B>, gradient: &B::Matrix, x: &B::Matrix) -> Outcome<()> {
        let (backend, tensors) = (&self.decoder.backend, &mut self.gradients.tensors);
        if let Some(into) = tensors.get_mut(linear.tensor) {
            backend.weight_gradient(gradient, x, into)?;
        }
        if let Some(place) = linear.bias_tensor
            && let Some(into) = tensors.get_mut(place)
        {
            backend.bias_gradient(gradient, into)?;
        }
        Ok(())
    }

    /// Adds the gradients of a pair under dropout, and that of its input to `into`.
    fn lora_with_dropout(
        &mut self,
        linear: &Linear<B>,
        gradient: &B::Matrix,
        x: &B::Matrix,
        into: Option<&mut B::Matrix>,
    ) -> Outcome<()> {
        let Some(adapter) = self.adapters.adapter else {
            return Ok(());
        };
        let pair = adapter.pairs[linear.pair].as_ref();
        let gradients = self.gradients.adapter.as_mut();
        let gradients = gradients.and_then(|adapter| adapter.pairs[linear.pair].as_mut());
        let inner = self.inner.get(&linear.pair);
        let (Some(pair), Some(gradients), Some(inner)) = (pair, gradients, inner) else {
            return Ok(());
        };
        let backend = &self.decoder.backend;
        let scale = adapter.scale;
        let dropped = self.adapters.dropout(backend, x, linear.pair)?;
        let x_dropped = dropped.as_ref().unwrap_or(x);
        let Some(into) = into else {
            return backend.lora_backward(gradient, x_dropped, inner, pair, scale, gradients, None);
        };
        // Dropped elements get no gradient through LoRA.
        let module = &self.decoder.modules[linear.pair];
        let mut made = backend.zeros(backend.rows(x), module.inputs)?;
        let made_into = Some(&mut made);
        backend.lora_backward(gradient, x_dropped, inner, pair, scale, gradients, made_into)?;
        if let Some(made) = self.adapters.dropout(backend, &made, linear.pair)? {
            backend.add(into, &made)?;
        }
        Ok(())
    }

    /// The gradient of the MLP's normed input; the norm is computed again.
    fn mlp(
        &mut self,
        layer: &DecoderLayer<B>,
        gradient: &B::Matrix,
        mlp_input: &B::Matrix,
        gate: B::Matrix,
        up: Option<B::Matrix>,
    ) -> Outcome<B::Matrix> {
        let decoder = self.decoder;
        let (backend, activation) = (&decoder.backend, decoder.activation());
        let active = backend.activate(activation, &gate, up.as_ref())?;
        let active_gradient = self.linear(layer.mlp.down(), gradient, &active)?;
        drop(active);
        let (gate, up) = backend.activate_backward(activation, gate, up, &active_gradient)?;
        drop(active_gradient);
        let normed = backend.norm(mlp_input, &layer.mlp_norm.norm)?;
        match (&layer.mlp, up) {
            (Mlp::Gated { gate: gate_linear, up: up_linear, .. }, Some(up)) => {
                let both = [(gate_linear, &gate), (up_linear, &up)];
                self.linears_to_input(&both, &normed)
            }
            (Mlp::FusedGated { gate_up, .. }, Some(up)) => {
                let [gate_columns, up_columns] = decoder.gate_up_columns();
                let mut both = backend.zeros(backend.rows(&gate), up_columns.end)?;
                backend.scatter_columns(&mut both, &[gate_columns], &gate)?;
                backend.scatter_columns(&mut both, &[up_columns], &up)?;
                self.linear(gate_up, &both, &normed)
            }
            (mlp, _) => {
                let first = match mlp {
                    Mlp::Gated { gate, .. } => gate,
                    Mlp::FusedGated { gate_up, .. } => gate_up,
                    Mlp::Plain { up, .. } => up,
                };
                self.linear(first, &gate, &normed)
            }
        }
    }

    /// The gradient of attention's normed input when it is wanted.
    fn qkv(
        &mut self,
        layer: &DecoderLayer<B>,
        gradients: &[B::Matrix; 3],
        x: &B::Matrix,
        wanted: bool,
    ) -> Outcome<Option<B::Matrix>> {
        let backend = &self.decoder.backend;
        let normed = backend.norm(x, &layer.attention_norm.norm)?;
        match &layer.qkv {
            Qkv::Separate([q, k, v]) => {
                let [of_q, of_k, of_v] = gradients;
                self.linears(&[(q, of_q), (k, of_k), (v, of_v)], &normed, wanted)
            }
            Qkv::Fused(linear, columns) => {
                let width = columns.iter().flatten().map(|range| range.end).max().unwrap_or(0);
                let mut all = backend.zeros(backend.rows(&normed), width)?;
                for (gradient, columns) in gradients.iter().zip(columns) {
                    backend.scatter_columns(&mut all, columns, gradient)?;
                }
                self.linears(&[(linear, &all)], &normed, wanted)
            }
        }
    }
}
