//! Losses over a packed batch, and backward through the blocks by hand.
//!
//! Frozen weights get no gradients. Nothing runs below the lowest block in which something trains, and
//! in that block nothing below the layers that do.

use super::adapter::Adapter;
use super::forward::{Beside, Sight};
use super::frozen::FrozenRows;
use super::pack::PackedBatch;
use super::saved_activations::Saved;
use super::trained::Trained;
use super::{Block, Decoder, Linear, Mlp, NormLayer, Qkv};
use crate::train::backend::BackendError;
use crate::train::backend::{
    Backend, LoraLinearBackward, LoraPairBackward, Outcome, RowLoss, Segment,
};

/// How much each row's loss counts in what is differentiated.
pub enum Weighing<'a> {
    /// All alike, with this factor.
    Even(f32),
    /// As the losses themselves say: a factor for each row. The head runs twice.
    ByLoss(&'a mut dyn FnMut(&[RowLoss]) -> Vec<f32>),
}

/// The numbers of a packed batch on the device: they go there once a pass.
struct OnDevice<B: Backend> {
    ids: B::Indexes,
    positions: B::Indexes,
    loss_rows: B::Indexes,
    targets: B::Indexes,
}

impl<B: Backend> OnDevice<B> {
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
    /// Losses of the rows that count, without dropout; of the base alone without an adapter.
    /// `frozen` is of this decoder and what trains.
    pub fn losses(
        &self,
        adapter: Option<&Adapter<B>>,
        batch: &PackedBatch,
        frozen: &mut FrozenRows,
    ) -> Outcome<Vec<RowLoss>> {
        if batch.targets.is_empty() {
            return Ok(Vec::new());
        }
        let there = OnDevice::new(&self.backend, batch)?;
        let mut sight = Sight::Segments(&batch.segments);
        let beside = Beside::plain(adapter);
        let x = self.behind_frozen(adapter, batch, (&there.ids, &there.positions), frozen)?;
        let above = frozen.blocks()..self.blocks.len();
        let (x, _) = self.run_blocks(above, x, &beside, &there.positions, &mut sight, false)?;
        let rows = self.backend.gather_rows(&x, &there.loss_rows)?;
        drop(x);
        let normed = self.backend.norm(&rows, &self.final_norm.norm)?;
        self.backend.row_losses(&self.head_losses(adapter, &normed, &there)?)
    }

    /// Losses of the rows that count; adds the gradients of their weighed sum to `gradients`. The
    /// losses are read when the whole way back has been asked for, so that the device never waits
    /// for the host in between; where they decide on the weights, they must be read before. `frozen`
    /// is of this decoder and what trains.
    pub fn losses_and_gradients(
        &self,
        trained: &Trained<B>,
        batch: &PackedBatch,
        weighing: Weighing<'_>,
        gradients: &mut Trained<B>,
        frozen: &mut FrozenRows,
    ) -> Outcome<Vec<RowLoss>> {
        if batch.targets.is_empty() {
            if let Weighing::ByLoss(weigh) = weighing {
                weigh(&[]);
            }
            return Ok(Vec::new());
        }
        let backend = &self.backend;
        let adapter = trained.adapter();
        let there = OnDevice::new(backend, batch)?;
        let mut sight = Sight::Segments(&batch.segments);
        let beside = Beside::dropping(self, adapter, &batch.draws)?;
        let x = self.behind_frozen(adapter, batch, (&there.ids, &there.positions), frozen)?;
        let above = frozen.blocks()..self.blocks.len();
        let (x, saved) = self.run_blocks(above, x, &beside, &there.positions, &mut sight, true)?;
        let rows = backend.gather_rows(&x, &there.loss_rows)?;
        drop(x);
        let normed = backend.norm(&rows, &self.final_norm.norm)?;
        let mut read = None;
        let factors = match weighing {
            Weighing::Even(factor) => vec![factor; batch.targets.len()],
            Weighing::ByLoss(weigh) => {
                let losses = backend.row_losses(&self.head_losses(adapter, &normed, &there)?)?;
                weigh(read.insert(losses))
            }
        };
        let (head, cap) = (self.head(adapter), self.config.logit_cap);
        let (losses, gradient) = match gradients.tensors.get_mut(self.places.head) {
            None => backend.head_loss(&normed, head, &there.targets, cap, Some(&factors))?,
            Some(into) => backend.head_loss_and_gradient(
                &normed,
                head,
                &there.targets,
                cap,
                &factors,
                into,
            )?,
        };
        drop(normed);
        if let Some(gradient) = gradient {
            let gradient = self.norm_backward(&self.final_norm, gradient, &rows, gradients)?;
            let gradient = backend.scatter_rows(batch.ids.len(), &there.loss_rows, &gradient)?;
            let lowest = (!self.trains_input(trained)).then_some(frozen.blocks());
            self.blocks_backward(saved, gradient, &beside, gradients, (&there, batch), lowest)?;
        }
        match read {
            Some(losses) => Ok(losses),
            None => backend.row_losses(&losses),
        }
    }

    /// Backward through the blocks down to `lowest`; without one, to what stands before them.
    fn blocks_backward(
        &self,
        mut saved: Vec<Saved<B>>,
        mut gradient: B::Matrix,
        beside: &Beside<'_, B>,
        gradients: &mut Trained<B>,
        (there, batch): (&OnDevice<B>, &PackedBatch),
        lowest: Option<usize>,
    ) -> Outcome<()> {
        let backend = &self.backend;
        let seen = (&there.positions, &batch.segments[..]);
        for (layer, block) in self.blocks.iter().enumerate().rev() {
            let Some(saved) = saved.pop() else { return Ok(()) };
            let below = lowest.is_none_or(|lowest| layer > lowest);
            let made =
                self.block_backward(block, saved, gradient, beside, gradients, seen, below)?;
            let Some(made) = made else { return Ok(()) };
            gradient = made;
        }
        if let Some(into) = gradients.tensors.get_mut(self.places.embedding) {
            backend.embed_gradient(&gradient, &there.ids, self.config.embedding_scale, into)?;
        }
        if let Some(place) = self.places.positions
            && let Some(into) = gradients.tensors.get_mut(place)
        {
            backend.embed_gradient(&gradient, &there.positions, 1.0, into)?;
        }
        Ok(())
    }

    /// Losses of the head over rows behind the last norm.
    fn head_losses(
        &self,
        adapter: Option<&Adapter<B>>,
        normed: &B::Matrix,
        there: &OnDevice<B>,
    ) -> Outcome<B::Losses> {
        let (head, cap) = (self.head(adapter), self.config.logit_cap);
        Ok(self.backend.head_loss(normed, head, &there.targets, cap, None)?.0)
    }

    /// The gradient of what a norm read; adds those of its weight and bias where they train.
    fn norm_backward(
        &self,
        layer: &NormLayer<B>,
        gradient: B::Matrix,
        x: &B::Matrix,
        gradients: &mut Trained<B>,
    ) -> Outcome<B::Matrix> {
        let (backend, norm) = (&self.backend, &layer.norm);
        if let Some(into) = gradients.tensors.get_mut(layer.place) {
            backend.norm_weight_gradient(&gradient, x, norm, into)?;
        }
        if norm.bias.is_some()
            && let Some(into) = gradients.tensors.get_mut(layer.place + 1)
        {
            backend.bias_gradient(&gradient, into)?;
        }
        backend.norm_backward(gradient, x, norm)
    }

    /// The gradient of the block's input when `below` blocks want it; adds to `gradients` on the way.
    /// `seen`: the positions of the tokens and the segments' offsets.
    #[expect(clippy::too_many_arguments, reason = "a block, what it kept, and its gradients")]
    fn block_backward(
        &self,
        block: &Block<B>,
        saved: Saved<B>,
        gradient: B::Matrix,
        beside: &Beside<'_, B>,
        gradients: &mut Trained<B>,
        (positions, segments): (&B::Indexes, &[Segment]),
        below: bool,
    ) -> Outcome<Option<B::Matrix>> {
        let backend = &self.backend;
        let Saved {
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
        let mut pass = Pass { decoder: self, beside, gradients, inner: &inner };
        let (before_attention_post_norm, before_mlp_post_norm) = match before_post_norms {
            Some([first, second]) => (Some(first), Some(second)),
            None => (None, None),
        };

        // The MLP.
        let mlp_gradient = match (&block.post_norms, &before_mlp_post_norm) {
            (Some([_, norm]), Some(before)) => {
                Some(pass.norm(norm, backend.copy(&gradient)?, before)?)
            }
            _ => None,
        };
        let mlp_input = middle.as_ref().unwrap_or(&x);
        let from_mlp =
            pass.mlp(block, mlp_gradient.as_ref().unwrap_or(&gradient), mlp_input, gate, up)?;
        let through_mlp = pass.norm(&block.mlp_norm, from_mlp, mlp_input)?;

        // The gradient that reaches attention's output, and the one that stays in the stream.
        let is_parallel = self.config.parallel_residual;
        let mut stream = gradient;
        if !is_parallel {
            backend.add(&mut stream, &through_mlp)?;
        }
        let output_gradient = match (&block.post_norms, &before_attention_post_norm) {
            (Some([norm, _]), Some(before)) => {
                Some(pass.norm(norm, backend.copy(&stream)?, before)?)
            }
            _ => None,
        };
        let output_gradient = output_gradient.as_ref().unwrap_or(&stream);
        let attended_gradient = pass.linear(&block.output, output_gradient, &attended)?;
        let [mut query_gradient, mut key_gradient, value_gradient] = backend.attention_backward(
            &attended_gradient,
            &queries,
            &keys,
            &values,
            &attended,
            &attention,
            segments,
            &block.attention,
        )?;
        drop(attended_gradient);
        if let Some(table) = block.rope.map(|rope| &self.tables[rope]) {
            let head_dim = block.attention.head_dim;
            backend.rotate(&mut query_gradient, head_dim, table, positions, true)?;
            backend.rotate(&mut key_gradient, head_dim, table, positions, true)?;
        }
        if let (Some([query_norm, key_norm]), Some([raw_queries, raw_keys])) =
            (&block.qk_norms, &raw_queries_and_keys)
        {
            query_gradient = pass.norm(query_norm, query_gradient, raw_queries)?;
            key_gradient = pass.norm(key_norm, key_gradient, raw_keys)?;
        }
        let made = [query_gradient, key_gradient, value_gradient];
        let wanted = below || pass.gradients.tensors.get(block.attention_norm.place).is_some();
        let Some(from_attention) = pass.qkv(block, &made, &x, wanted)? else {
            return Ok(None);
        };
        let through_attention = pass.norm(&block.attention_norm, from_attention, &x)?;
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

/// One block's backward pass: where the gradients of what trains go.
struct Pass<'a, B: Backend> {
    decoder: &'a Decoder<B>,
    beside: &'a Beside<'a, B>,
    gradients: &'a mut Trained<B>,
    inner: &'a std::collections::BTreeMap<usize, B::Matrix>,
}

impl<B: Backend> Pass<'_, B> {
    /// The gradient of what a norm read; adds those of its weight and bias where they train.
    fn norm(
        &mut self,
        layer: &NormLayer<B>,
        gradient: B::Matrix,
        x: &B::Matrix,
    ) -> Outcome<B::Matrix> {
        self.decoder.norm_backward(layer, gradient, x, self.gradients)
    }

    /// The gradient of what a layer read; adds the gradients of what trains of it to theirs.
    fn linear(
        &mut self,
        linear: &Linear<B>,
        gradient: &B::Matrix,
        x: &B::Matrix,
    ) -> Outcome<B::Matrix> {
        self.linears_to_input(&[(linear, gradient)], x)
    }

    /// The gradient of what several layers read.
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

    /// The gradient of what several layers read, where it is wanted; adds the gradients of what trains
    /// of them to theirs.
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
        if self.beside.is_dropping() {
            // Each pair has read a copy of its own.
            let mut into = None;
            for (linear, gradient) in linears {
                if wanted {
                    into = Some(backend.linear_backward(gradient, &linear.weight, into)?);
                }
                self.lora_dropping(linear, gradient, x, into.as_mut())?;
            }
            return Ok(into);
        }
        let scale = self.beside.adapter.map_or(0.0, |adapter| adapter.scale);
        // The gradients of several pairs change at once: they are taken out meanwhile.
        let mut taken = Vec::with_capacity(linears.len());
        for (linear, _) in linears {
            let pairs = self.gradients.adapter.as_mut().map(|adapter| &mut adapter.pairs);
            taken.push(pairs.and_then(|pairs| pairs[linear.pair].take()));
        }
        let mut layers = Vec::with_capacity(linears.len());
        for ((linear, gradient), gradients) in linears.iter().zip(&mut taken) {
            let pair = self.beside.adapter.and_then(|adapter| adapter.pairs[linear.pair].as_ref());
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
        if let Some(into) = tensors.get_mut(linear.place) {
            backend.weight_gradient(gradient, x, into)?;
        }
        if let Some(place) = linear.bias_place
            && let Some(into) = tensors.get_mut(place)
        {
            backend.bias_gradient(gradient, into)?;
        }
        Ok(())
    }

    /// Adds the gradients of a pair under dropout, and that of its input to `into`.
    fn lora_dropping(
        &mut self,
        linear: &Linear<B>,
        gradient: &B::Matrix,
        x: &B::Matrix,
        into: Option<&mut B::Matrix>,
    ) -> Outcome<()> {
        let Some(adapter) = self.beside.adapter else {
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
        let dropped = self.beside.dropped(backend, x, linear.pair)?;
        let x_dropped = dropped.as_ref().unwrap_or(x);
        let Some(into) = into else {
            return backend.lora_backward(gradient, x_dropped, inner, pair, scale, gradients, None);
        };
        // What LoRA did not see gets no gradient through it.
        let module = &self.decoder.modules[linear.pair];
        let mut made = backend.zeros(backend.rows(x), module.inputs)?;
        let made_into = Some(&mut made);
        backend.lora_backward(gradient, x_dropped, inner, pair, scale, gradients, made_into)?;
        if let Some(made) = self.beside.dropped(backend, &made, linear.pair)? {
            backend.add(into, &made)?;
        }
        Ok(())
    }

    /// The gradient of the MLP's normed input; the norm is computed again.
    fn mlp(
        &mut self,
        block: &Block<B>,
        gradient: &B::Matrix,
        mlp_input: &B::Matrix,
        gate: B::Matrix,
        up: Option<B::Matrix>,
    ) -> Outcome<B::Matrix> {
        let decoder = self.decoder;
        let (backend, curve) = (&decoder.backend, decoder.curve());
        let active = backend.activate(curve, &gate, up.as_ref())?;
        let active_gradient = self.linear(block.mlp.down(), gradient, &active)?;
        drop(active);
        let (gate, up) = backend.activate_backward(curve, gate, up, &active_gradient)?;
        drop(active_gradient);
        let normed = backend.norm(mlp_input, &block.mlp_norm.norm)?;
        match (&block.mlp, up) {
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
        block: &Block<B>,
        gradients: &[B::Matrix; 3],
        x: &B::Matrix,
        wanted: bool,
    ) -> Outcome<Option<B::Matrix>> {
        let backend = &self.decoder.backend;
        let normed = backend.norm(x, &block.attention_norm.norm)?;
        match &block.qkv {
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
