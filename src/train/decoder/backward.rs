//! Losses of a packed batch, and the backward pass through the layers, written by hand.
//!
//! Frozen weights get no gradients. The backward pass ends at the lowest layer in which something trains, and in
//! that layer at the lowest module that trains.

use super::adapter::LoraAdapter;
use super::forward::{AdapterContext, AttentionContext};
use super::frozen_layer_cache::FrozenLayerCache;
use super::pack::PackedBatch;
use super::saved_activations::SavedActivations;
use super::trainable_state::TrainableState;
use super::{Decoder, DecoderLayer, Linear, Mlp, NormLayer, Qkv};
use crate::train::backend::BackendError;
use crate::train::backend::{
    Backend, LoraLinearBackward, LoraPairBackward, Outcome, RowLoss, Segment,
};

/// The weight of each row's loss in the total that is differentiated.
pub enum LossWeights<'a> {
    /// The same factor for all rows.
    Uniform(f32),
    /// A factor for each row, computed from the losses. The head runs twice.
    FromLosses(&'a mut dyn FnMut(&[RowLoss]) -> Vec<f32>),
}

/// The numbers of a packed batch on the device: they go there once a pass.
struct DeviceBatch<B: Backend> {
    ids: B::Indexes,
    positions: B::Indexes,
    loss_rows: B::Indexes,
    targets: B::Indexes,
}

impl<B: Backend> DeviceBatch<B> {
    fn new(backend: &B, batch: &PackedBatch) -> Outcome<Self> {
        Ok(Self {
            ids: backend.indexes(&batch.ids)?,
            positions: backend.indexes(&batch.positions)?,
            loss_rows: backend.indexes(&batch.loss_rows)?,
            targets: backend.indexes(&batch.targets)?,
        })
    }
}

impl<B: Backend> Decoder<B> {
    /// Losses of the supervised rows, without dropout; of the base model without an adapter.
    /// `frozen` belongs to this decoder and trainable state.
    pub fn losses(
        &self,
        adapter: Option<&LoraAdapter<B>>,
        batch: &PackedBatch,
        frozen: &mut FrozenLayerCache,
    ) -> Outcome<Vec<RowLoss>> {
        if batch.targets.is_empty() {
            return Ok(Vec::new());
        }
        let device_batch = DeviceBatch::new(&self.backend, batch)?;
        let mut attention_context = AttentionContext::Segments(&batch.segments);
        let adapters = AdapterContext::without_dropout(adapter);
        let x = self.frozen_layers_output(
            adapter,
            batch,
            (&device_batch.ids, &device_batch.positions),
            frozen,
        )?;
        let above = frozen.layers()..self.layers.len();
        let (x, _) = self.run_layers(
            above,
            x,
            &adapters,
            &device_batch.positions,
            &mut attention_context,
            false,
        )?;
        let rows = self.backend.gather_rows(&x, &device_batch.loss_rows)?;
        drop(x);
        let normed = self.backend.norm(&rows, &self.final_norm.norm)?;
        self.backend.row_losses(&self.head_losses(adapter, &normed, &device_batch)?)
    }

    /// Losses of the supervised rows; adds the gradients of their weighted sum to `gradients`. The losses are read
    /// after the whole backward pass has been launched, so that the device never waits for the host in between;
    /// where they decide on the weights, they are read before. `frozen` belongs to this decoder and trainable
    /// state.
    pub fn losses_and_gradients(
        &self,
        trained: &TrainableState<B>,
        batch: &PackedBatch,
        loss_weights: LossWeights<'_>,
        gradients: &mut TrainableState<B>,
        frozen: &mut FrozenLayerCache,
    ) -> Outcome<Vec<RowLoss>> {
        if batch.targets.is_empty() {
            if let LossWeights::FromLosses(weigh) = loss_weights {
                weigh(&[]);
            }
            return Ok(Vec::new());
        }
        let backend = &self.backend;
        let adapter = trained.adapter();
        let device_batch = DeviceBatch::new(backend, batch)?;
        let mut attention_context = AttentionContext::Segments(&batch.segments);
        let adapters = AdapterContext::with_dropout(self, adapter, &batch.dropout_streams)?;
        let x = self.frozen_layers_output(
            adapter,
            batch,
            (&device_batch.ids, &device_batch.positions),
            frozen,
        )?;
        let above = frozen.layers()..self.layers.len();
        let (x, saved) = self.run_layers(
            above,
            x,
            &adapters,
            &device_batch.positions,
            &mut attention_context,
            true,
        )?;
        let rows = backend.gather_rows(&x, &device_batch.loss_rows)?;
        drop(x);
        let normed = backend.norm(&rows, &self.final_norm.norm)?;
        let mut read = None;
        let factors = match loss_weights {
            LossWeights::Uniform(factor) => vec![factor; batch.targets.len()],
            LossWeights::FromLosses(weigh) => {
                let losses =
                    backend.row_losses(&self.head_losses(adapter, &normed, &device_batch)?)?;
                weigh(read.insert(losses))
            }
        };
        let (head, cap) = (self.head(adapter), self.config.logit_cap);
        let (losses, gradient) = match gradients.tensors.get_mut(self.outer_tensors.head) {
            None => backend.head_loss(&normed, head, &device_batch.targets, cap, Some(&factors))?,
            Some(into) => backend.head_loss_and_gradient(
                &normed,
                head,
                &device_batch.targets,
                cap,
                &factors,
                into,
            )?,
        };
        drop(normed);
        if let Some(gradient) = gradient {
            let gradient = self.norm_backward(&self.final_norm, gradient, &rows, gradients)?;
            let gradient =
                backend.scatter_rows(batch.ids.len(), &device_batch.loss_rows, &gradient)?;
            let lowest = (!self.trains_input(trained)).then_some(frozen.layers());
            self.layers_backward(
                saved,
                gradient,
                &adapters,
                gradients,
                (&device_batch, batch),
                lowest,
            )?;
        }
        match read {
            Some(losses) => Ok(losses),
            None => backend.row_losses(&losses),
        }
    }

    /// Backward through the layers down to `lowest`; without one, down to the embedding.
    fn layers_backward(
        &self,
        mut saved: Vec<SavedActivations<B>>,
        mut gradient: B::Matrix,
        adapters: &AdapterContext<'_, B>,
        gradients: &mut TrainableState<B>,
        (device_batch, batch): (&DeviceBatch<B>, &PackedBatch),
        lowest: Option<usize>,
    ) -> Outcome<()> {
        let backend = &self.backend;
        let seen = (&device_batch.positions, &batch.segments[..]);
        for (index, layer) in self.layers.iter().enumerate().rev() {
            let Some(saved) = saved.pop() else { return Ok(()) };
            let below = lowest.is_none_or(|lowest| index > lowest);
            let made =
                self.layer_backward(layer, saved, gradient, adapters, gradients, seen, below)?;
            let Some(made) = made else { return Ok(()) };
            gradient = made;
        }
        if let Some(into) = gradients.tensors.get_mut(self.outer_tensors.embedding) {
            backend.embed_gradient(
                &gradient,
                &device_batch.ids,
                self.config.embedding_scale,
                into,
            )?;
        }
        if let Some(place) = self.outer_tensors.positions
            && let Some(into) = gradients.tensors.get_mut(place)
        {
            backend.embed_gradient(&gradient, &device_batch.positions, 1.0, into)?;
        }
        Ok(())
    }

    /// Losses of the head over normed rows.
    fn head_losses(
        &self,
        adapter: Option<&LoraAdapter<B>>,
        normed: &B::Matrix,
        device_batch: &DeviceBatch<B>,
    ) -> Outcome<B::Losses> {
        let (head, cap) = (self.head(adapter), self.config.logit_cap);
        Ok(self.backend.head_loss(normed, head, &device_batch.targets, cap, None)?.0)
    }

    /// The gradient of a norm's input; adds those of its weight and bias where they train.
    fn norm_backward(
        &self,
        layer: &NormLayer<B>,
        gradient: B::Matrix,
        x: &B::Matrix,
        gradients: &mut TrainableState<B>,
    ) -> Outcome<B::Matrix> {
        let (backend, norm) = (&self.backend, &layer.norm);
        if let Some(into) = gradients.tensors.get_mut(layer.tensor) {
            backend.norm_weight_gradient(&gradient, x, norm, into)?;
        }
        if norm.bias.is_some()
            && let Some(into) = gradients.tensors.get_mut(layer.tensor + 1)
        {
            backend.bias_gradient(&gradient, into)?;
        }
        backend.norm_backward(gradient, x, norm)
    }

    /// The gradient of the layer's input when `below` layers want it; adds to `gradients` on the way.
    /// `seen`: the positions of the tokens and the segments' offsets.
    #[expect(clippy::too_many_arguments, reason = "a layer, its saved activations, and gradients")]
    fn layer_backward(
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
    inner: &'a std::collections::BTreeMap<usize, B::Matrix>,
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
