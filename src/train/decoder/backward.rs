//! Losses of a packed batch, and the backward pass down the layers, written by hand. `layer_backward` is
//! that of one layer.
//!
//! Frozen weights get no gradients. The backward pass ends at the lowest layer in which something trains, and in
//! that layer at the lowest module that trains.

use super::adapter::LoraAdapter;
use super::forward::{AdapterContext, AttentionContext};
use super::frozen_layer_cache::FrozenLayerCache;
use super::pack::PackedBatch;
use super::saved_activations::SavedActivations;
use super::trainable_state::TrainableState;
use super::{Decoder, NormLayer};
use crate::train::backend::{Backend, Outcome, RowLoss};

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
        let adapters = AdapterContext::without_dropout(adapter);
        let (_, normed, _) =
            self.supervised_rows(&adapters, (&device_batch, batch), frozen, false)?;
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
        let adapters = AdapterContext::with_dropout(self, adapter, &batch.dropout_streams)?;
        let (rows, normed, saved) =
            self.supervised_rows(&adapters, (&device_batch, batch), frozen, true)?;
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

    /// The supervised rows of the last layer's output, before and after the final norm, and what the
    /// backward pass needs of each layer where `saves` says so.
    #[expect(clippy::type_complexity, reason = "two matrices and the layers' activations")]
    fn supervised_rows(
        &self,
        adapters: &AdapterContext<'_, B>,
        (device_batch, batch): (&DeviceBatch<B>, &PackedBatch),
        frozen: &mut FrozenLayerCache,
        saves: bool,
    ) -> Outcome<(B::Matrix, B::Matrix, Vec<SavedActivations<B>>)> {
        let (ids, positions) = (&device_batch.ids, &device_batch.positions);
        let x = self.frozen_layers_output(adapters.adapter, batch, (ids, positions), frozen)?;
        let mut context = AttentionContext::Segments(&batch.segments);
        let above = frozen.layers()..self.layers.len();
        let (x, saved) = self.run_layers(above, x, adapters, positions, &mut context, saves)?;
        let rows = self.backend.gather_rows(&x, &device_batch.loss_rows)?;
        drop(x);
        let normed = self.backend.norm(&rows, &self.final_norm.norm)?;
        Ok((rows, normed, saved))
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
    pub(super) fn norm_backward(
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
}
