//! Losses over a packed batch, and backward through the blocks by hand.
//!
//! Frozen weights get no gradients. Nothing runs below the lowest block that has a LoRA pair, and in
//! that block nothing below the layers that have one.

use super::adapter::Adapter;
use super::forward::{Beside, Sight};
use super::pack::PackedBatch;
use super::saved::Saved;
use super::{Block, Decoder, Linear, Mlp, Qkv};
use crate::train::backend::{Backend, Outcome, RowLoss, Segment};

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
    pub fn losses(
        &self,
        adapter: Option<&Adapter<B>>,
        batch: &PackedBatch,
    ) -> Outcome<Vec<RowLoss>> {
        if batch.targets.is_empty() {
            return Ok(Vec::new());
        }
        let there = OnDevice::new(&self.backend, batch)?;
        let sight = Sight::Segments(&batch.segments);
        let beside = Beside::plain(adapter);
        let (x, _) = self.run_blocks(&beside, &there.ids, &there.positions, sight, None)?;
        let rows = self.backend.take_rows(&x, &there.loss_rows)?;
        drop(x);
        let normed = self.backend.norm(&rows, &self.final_norm)?;
        self.backend.row_losses(&self.head_losses(&normed, &there, None)?.0)
    }

    /// Losses of the rows that count; adds the gradients of their weighed sum to `gradients`. The
    /// losses are read when the whole way back has been asked for, so that the device never waits
    /// for the host in between; where they decide on the weights, they must be read before.
    pub fn losses_and_gradients(
        &self,
        adapter: &Adapter<B>,
        batch: &PackedBatch,
        weighing: Weighing<'_>,
        gradients: &mut Adapter<B>,
    ) -> Outcome<Vec<RowLoss>> {
        if batch.targets.is_empty() {
            if let Weighing::ByLoss(weigh) = weighing {
                weigh(&[]);
            }
            return Ok(Vec::new());
        }
        let backend = &self.backend;
        let lowest = self.lowest_adapted_block(adapter);
        let there = OnDevice::new(backend, batch)?;
        let sight = Sight::Segments(&batch.segments);
        let beside = Beside::dropping(self, adapter, &batch.draws)?;
        let (x, mut saved) =
            self.run_blocks(&beside, &there.ids, &there.positions, sight, Some(lowest))?;
        let rows = backend.take_rows(&x, &there.loss_rows)?;
        drop(x);
        let normed = backend.norm(&rows, &self.final_norm)?;
        let mut read = None;
        let factors = match weighing {
            Weighing::Even(factor) => vec![factor; batch.targets.len()],
            Weighing::ByLoss(weigh) => {
                let losses = backend.row_losses(&self.head_losses(&normed, &there, None)?.0)?;
                weigh(read.insert(losses))
            }
        };
        let (losses, gradient) = self.head_losses(&normed, &there, Some(&factors))?;
        drop(normed);
        if let Some(gradient) = gradient {
            let gradient = backend.norm_backward(gradient, &rows, &self.final_norm)?;
            let mut gradient = backend.spread_rows(batch.ids.len(), &there.loss_rows, &gradient)?;
            let seen = (&there.positions, &batch.segments[..]);
            for (layer, block) in self.blocks.iter().enumerate().rev() {
                let Some(saved) = saved.pop() else { break };
                let below = layer > lowest;
                let made =
                    self.block_backward(block, saved, gradient, &beside, gradients, seen, below)?;
                let Some(made) = made else { break };
                gradient = made;
            }
        }
        match read {
            Some(losses) => Ok(losses),
            None => backend.row_losses(&losses),
        }
    }

    /// Losses of the head over rows behind the last norm, and the gradient of these rows.
    fn head_losses(
        &self,
        normed: &B::Matrix,
        there: &OnDevice<B>,
        factors: Option<&[f32]>,
    ) -> Outcome<(B::Losses, Option<B::Matrix>)> {
        let cap = self.config.logit_cap;
        self.backend.head_loss(normed, self.head(), &there.targets, cap, factors)
    }

    /// Index of the first block with a LoRA pair.
    fn lowest_adapted_block(&self, adapter: &Adapter<B>) -> usize {
        let has = |linear: &Linear<B>| adapter.pairs[linear.pair].is_some();
        let lowest = self.blocks.iter().position(|block| {
            let in_attention = match &block.qkv {
                Qkv::Separate(three) => three.iter().any(has),
                Qkv::Fused(one, _) => has(one),
            };
            let in_mlp = match &block.mlp {
                Mlp::Gated { gate, up, .. } => has(gate) || has(up),
                Mlp::FusedGated { gate_up, .. } => has(gate_up),
                Mlp::Plain { up, .. } => has(up),
            };
            in_attention || in_mlp || has(&block.output) || has(block.mlp.down())
        });
        lowest.unwrap_or(self.blocks.len())
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
        gradients: &mut Adapter<B>,
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
                Some(backend.norm_backward(backend.copy(&gradient)?, before, norm)?)
            }
            _ => None,
        };
        let mlp_input = middle.as_ref().unwrap_or(&x);
        let from_mlp =
            pass.mlp(block, mlp_gradient.as_ref().unwrap_or(&gradient), mlp_input, gate, up)?;
        let through_mlp = backend.norm_backward(from_mlp, mlp_input, &block.mlp_norm)?;

        // The gradient that reaches attention's output, and the one that stays in the stream.
        let is_parallel = self.config.parallel_residual;
        let mut stream = gradient;
        if !is_parallel {
            backend.add(&mut stream, &through_mlp)?;
        }
        let output_gradient = match (&block.post_norms, &before_attention_post_norm) {
            (Some([norm, _]), Some(before)) => {
                Some(backend.norm_backward(backend.copy(&stream)?, before, norm)?)
            }
            _ => None,
        };
        let output_gradient = output_gradient.as_ref().unwrap_or(&stream);
        let attended_gradient = pass.linear(&block.output, output_gradient, &attended, None)?;
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
            query_gradient = backend.norm_backward(query_gradient, raw_queries, query_norm)?;
            key_gradient = backend.norm_backward(key_gradient, raw_keys, key_norm)?;
        }
        let made = [query_gradient, key_gradient, value_gradient];
        let from_attention = pass.qkv(block, &made, &x, below)?;
        let Some(from_attention) = from_attention else {
            return Ok(None);
        };
        let through_attention = backend.norm_backward(from_attention, &x, &block.attention_norm)?;
        backend.add(&mut stream, &through_attention)?;
        if is_parallel {
            backend.add(&mut stream, &through_mlp)?;
        }
        Ok(Some(stream))
    }
}

/// One block's backward pass: where LoRA gradients go.
struct Pass<'a, B: Backend> {
    decoder: &'a Decoder<B>,
    beside: &'a Beside<'a, B>,
    gradients: &'a mut Adapter<B>,
    inner: &'a std::collections::BTreeMap<usize, B::Matrix>,
}

impl<B: Backend> Pass<'_, B> {
    /// Adds the gradient of a layer's input to `into` (or makes it), and its LoRA gradients to
    /// theirs.
    fn linear(
        &mut self,
        linear: &Linear<B>,
        gradient: &B::Matrix,
        x: &B::Matrix,
        into: Option<B::Matrix>,
    ) -> Outcome<B::Matrix> {
        let backend = &self.decoder.backend;
        let mut into = backend.linear_backward(gradient, &linear.weight, into)?;
        self.lora(linear, gradient, x, Some(&mut into))?;
        Ok(into)
    }

    fn lora(
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
        let gradients = self.gradients.pairs[linear.pair].as_mut();
        let inner = self.inner.get(&linear.pair);
        let (Some(pair), Some(gradients), Some(inner)) = (pair, gradients, inner) else {
            return Ok(());
        };
        let backend = &self.decoder.backend;
        let scale = adapter.scale;
        let Some(dropped) = self.beside.dropped(backend, x, linear.pair)? else {
            return backend.lora_backward(gradient, x, inner, pair, scale, gradients, into);
        };
        let Some(into) = into else {
            return backend.lora_backward(gradient, &dropped, inner, pair, scale, gradients, None);
        };
        // What LoRA did not see gets no gradient through it.
        let module = &self.decoder.modules[linear.pair];
        let mut made = backend.zeros(backend.rows(x), module.inputs)?;
        let made_into = Some(&mut made);
        backend.lora_backward(gradient, &dropped, inner, pair, scale, gradients, made_into)?;
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
        let active_gradient = self.linear(block.mlp.down(), gradient, &active, None)?;
        drop(active);
        let (gate, up) = backend.activate_backward(curve, gate, up, &active_gradient)?;
        drop(active_gradient);
        let normed = backend.norm(mlp_input, &block.mlp_norm)?;
        match (&block.mlp, up) {
            (Mlp::Gated { gate: gate_linear, up: up_linear, .. }, Some(up)) => {
                let into = self.linear(gate_linear, &gate, &normed, None)?;
                self.linear(up_linear, &up, &normed, Some(into))
            }
            (Mlp::FusedGated { gate_up, .. }, Some(up)) => {
                let [gate_columns, up_columns] = decoder.gate_up_columns();
                let mut both = backend.zeros(backend.rows(&gate), up_columns.end)?;
                backend.put_columns(&mut both, &[gate_columns], &gate)?;
                backend.put_columns(&mut both, &[up_columns], &up)?;
                self.linear(gate_up, &both, &normed, None)
            }
            (mlp, _) => {
                let first = match mlp {
                    Mlp::Gated { gate, .. } => gate,
                    Mlp::FusedGated { gate_up, .. } => gate_up,
                    Mlp::Plain { up, .. } => up,
                };
                self.linear(first, &gate, &normed, None)
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
        let normed = backend.norm(x, &block.attention_norm)?;
        match &block.qkv {
            Qkv::Separate(three) => {
                let mut into = None;
                for (linear, gradient) in three.iter().zip(gradients) {
                    if wanted {
                        into = Some(self.linear(linear, gradient, &normed, into)?);
                    } else {
                        self.lora(linear, gradient, &normed, None)?;
                    }
                }
                Ok(into)
            }
            Qkv::Fused(linear, columns) => {
                let width = columns.iter().flatten().map(|range| range.end).max().unwrap_or(0);
                let mut all = backend.zeros(backend.rows(&normed), width)?;
                for (gradient, columns) in gradients.iter().zip(columns) {
                    backend.put_columns(&mut all, columns, gradient)?;
                }
                if wanted {
                    return Ok(Some(self.linear(linear, &all, &normed, None)?));
                }
                self.lora(linear, &all, &normed, None)?;
                Ok(None)
            }
        }
    }
}
