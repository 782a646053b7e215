//! Forward through the blocks, for training, evaluation and decoding alike.

use std::collections::BTreeMap;
use std::ops::Range;

use super::adapter::{Adapter, ReadyAdapter};
use super::saved_activations::Saved;
use super::{Block, Decoder, Linear, Mlp, Qkv};
use crate::train::backend::{
    Backend, CachedRows, LoraGroup, LoraLinear, Matrices, Outcome, Segment,
};
use crate::train::rng::Stream;

/// How the tokens of a pass see each other.
pub(super) enum Sight<'a, B: Backend> {
    /// Segments of a packed batch, each for itself.
    Segments(&'a [Segment]),
    /// Texts, each of which continues what its cache holds.
    Texts(Vec<CachedRows<'a, B>>),
}

/// Rows and the adapter beside the base's layers for them.
pub(super) struct AdaptedRows<'a, B: Backend> {
    /// The rows.
    pub rows: Range<usize>,
    /// The adapter.
    pub adapter: &'a ReadyAdapter<B>,
}

/// What stands beside the base's layers in a pass.
pub(super) struct Beside<'a, B: Backend> {
    /// `None` for the base alone.
    pub adapter: Option<&'a Adapter<B>>,
    /// What dropout leaves of each pair's input, by pair; empty without dropout.
    masks: BTreeMap<usize, B::DropoutMask>,
    /// Runs of rows with adapters of their own, for answering; none in other passes.
    runs: Option<Vec<AdaptedRows<'a, B>>>,
}

impl<'a, B: Backend> Beside<'a, B> {
    /// An adapter without dropout.
    pub(super) fn plain(adapter: Option<&'a Adapter<B>>) -> Self {
        Self { adapter, masks: BTreeMap::new(), runs: None }
    }

    /// Runs of rows with adapters of their own.
    pub(super) fn answering(runs: Vec<AdaptedRows<'a, B>>) -> Self {
        Self { adapter: None, masks: BTreeMap::new(), runs: Some(runs) }
    }

    /// An adapter with dropout, on which `draws` decide, one for each row; none without draws.
    pub(super) fn dropping(
        decoder: &Decoder<B>,
        adapter: Option<&'a Adapter<B>>,
        draws: &[Stream],
    ) -> Outcome<Self> {
        let dropping = adapter.filter(|adapter| !draws.is_empty() && adapter.dropout > 0.0);
        let Some(adapter) = dropping else {
            return Ok(Self::plain(adapter));
        };
        let mut pairs = Vec::new();
        let mut layers = Vec::new();
        for (pair, module) in decoder.modules().iter().enumerate() {
            if adapter.pairs[pair].is_some() {
                pairs.push(pair);
                layers.push((pair as u64, module.inputs));
            }
        }
        let masks = decoder.backend.dropout_masks(draws, &layers, adapter.dropout)?;
        let masks = pairs.into_iter().zip(masks).collect();
        Ok(Self { adapter: Some(adapter), masks, runs: None })
    }

    /// Whether dropout takes a part of the input of any pair.
    pub(super) fn is_dropping(&self) -> bool {
        !self.masks.is_empty()
    }

    /// What the pair of index `pair` reads of its layer's input: a masked copy under dropout.
    pub(super) fn dropped(
        &self,
        backend: &B,
        x: &B::Matrix,
        pair: usize,
    ) -> Outcome<Option<B::Matrix>> {
        match self.masks.get(&pair) {
            Some(mask) => Ok(Some(backend.apply_dropout(x, mask)?)),
            None => Ok(None),
        }
    }
}

/// x · aᵀ of adapted layers as they pile up; `None` when no backward pass follows.
type Inner<B> = Option<BTreeMap<usize, <B as Matrices>::Matrix>>;

impl<B: Backend> Decoder<B> {
    /// The residual stream in front of the first block.
    pub(super) fn embed(
        &self,
        adapter: Option<&Adapter<B>>,
        ids: &B::Indexes,
        positions: &B::Indexes,
    ) -> Outcome<B::Matrix> {
        let backend = &self.backend;
        let mut x = backend.embed(self.embedding(adapter), ids, self.config.embedding_scale)?;
        if let Some(table) = &self.positions {
            backend.add(&mut x, &backend.embed(table, positions, 1.0)?)?;
        }
        Ok(x)
    }

    /// The residual stream `x` behind the blocks `layers`, and with `keep` what they keep for the
    /// backward pass.
    pub(super) fn run_blocks(
        &self,
        layers: Range<usize>,
        mut x: B::Matrix,
        beside: &Beside<'_, B>,
        positions: &B::Indexes,
        sight: &mut Sight<'_, B>,
        keep: bool,
    ) -> Outcome<(B::Matrix, Vec<Saved<B>>)> {
        let mut saved = Vec::new();
        for layer in layers {
            let block = &self.blocks[layer];
            let (next, kept) = self.run_block(block, layer, x, beside, positions, sight, keep)?;
            x = next;
            saved.extend(kept);
        }
        Ok((x, saved))
    }

    #[expect(clippy::too_many_arguments, reason = "a block, its input and what it looks at")]
    fn run_block(
        &self,
        block: &Block<B>,
        layer: usize,
        x: B::Matrix,
        beside: &Beside<'_, B>,
        positions: &B::Indexes,
        sight: &mut Sight<'_, B>,
        keep: bool,
    ) -> Outcome<(B::Matrix, Option<Saved<B>>)> {
        let backend = &self.backend;
        let mut inner: Inner<B> = keep.then(BTreeMap::new);

        let normed = backend.norm(&x, &block.attention_norm.norm)?;
        let [mut queries, mut keys, values] = self.qkv(block, &normed, beside, &mut inner)?;
        drop(normed);
        let mut raw_queries_and_keys = None;
        if let Some([query_norm, key_norm]) = &block.qk_norms {
            let normed =
                [backend.norm(&queries, &query_norm.norm)?, backend.norm(&keys, &key_norm.norm)?];
            raw_queries_and_keys = Some([queries, keys]);
            [queries, keys] = normed;
        }
        if let Some(table) = block.rope.map(|rope| &self.tables[rope]) {
            let head_dim = block.attention.head_dim;
            backend.rotate(&mut queries, head_dim, table, positions, false)?;
            backend.rotate(&mut keys, head_dim, table, positions, false)?;
        }
        let (attended, attention) = match sight {
            Sight::Segments(segments) => {
                backend.attention(&queries, &keys, &values, segments, &block.attention)?
            }
            Sight::Texts(texts) => {
                let shape = &block.attention;
                let attended =
                    backend.attend_cached(layer, &queries, &keys, &values, texts, shape)?;
                (attended, backend.zeros(0, 1)?)
            }
        };
        let output = self.apply(&block.output, &attended, beside, &mut inner)?;

        // Attention joins the residual stream, through its own norm where it has one.
        let (mut middle, mut before_attention_post_norm) = (output, None);
        if let Some([norm, _]) = &block.post_norms {
            let normed = backend.norm(&middle, &norm.norm)?;
            before_attention_post_norm = Some(std::mem::replace(&mut middle, normed));
        }
        backend.add(&mut middle, &x)?;

        let mlp_input = if self.config.parallel_residual { &x } else { &middle };
        let normed = backend.norm(mlp_input, &block.mlp_norm.norm)?;
        let (gate, up) = self.mlp_in(&block.mlp, &normed, beside, &mut inner)?;
        drop(normed);
        let active = backend.activate(self.curve(), &gate, up.as_ref())?;
        let down = self.apply(block.mlp.down(), &active, beside, &mut inner)?;
        drop(active);
        let (mut next, mut before_post_norms) = (down, None);
        if let (Some([_, norm]), Some(first)) = (&block.post_norms, before_attention_post_norm) {
            let normed = backend.norm(&next, &norm.norm)?;
            before_post_norms = Some([first, std::mem::replace(&mut next, normed)]);
        }
        backend.add(&mut next, &middle)?;
        let middle = (!self.config.parallel_residual).then_some(middle);

        let saved = inner.map(|inner| Saved {
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
        });
        Ok((next, saved))
    }

    /// Queries, keys and values before norms and rotation.
    fn qkv(
        &self,
        block: &Block<B>,
        normed: &B::Matrix,
        beside: &Beside<'_, B>,
        inner: &mut Inner<B>,
    ) -> Outcome<[B::Matrix; 3]> {
        match &block.qkv {
            Qkv::Separate([q, k, v]) => {
                let [q, k, v] = self.apply_all([q, k, v], normed, beside, inner);
                Ok([q?, k?, v?])
            }
            Qkv::Fused(linear, [q, k, v]) => {
                let all = self.apply(linear, normed, beside, inner)?;
                let backend = &self.backend;
                Ok([
                    backend.gather_columns(&all, q)?,
                    backend.gather_columns(&all, k)?,
                    backend.gather_columns(&all, v)?,
                ])
            }
        }
    }

    /// The MLP's hidden layer before the activation: gate, and up where it is gated.
    fn mlp_in(
        &self,
        mlp: &Mlp<B>,
        normed: &B::Matrix,
        beside: &Beside<'_, B>,
        inner: &mut Inner<B>,
    ) -> Outcome<(B::Matrix, Option<B::Matrix>)> {
        match mlp {
            Mlp::Gated { gate, up, .. } => {
                let [gate, up] = self.apply_all([gate, up], normed, beside, inner);
                Ok((gate?, Some(up?)))
            }
            Mlp::FusedGated { gate_up, .. } => {
                let both = self.apply(gate_up, normed, beside, inner)?;
                let [gate, up] = self.gate_up_columns();
                let backend = &self.backend;
                let up = backend.gather_columns(&both, &[up])?;
                Ok((backend.gather_columns(&both, &[gate])?, Some(up)))
            }
            Mlp::Plain { up, .. } => Ok((self.apply(up, normed, beside, inner)?, None)),
        }
    }

    /// Columns of gate and up in the output of a fused layer.
    pub(super) fn gate_up_columns(&self) -> [Range<usize>; 2] {
        let width = self.config.intermediate;
        [0..width, width..2 * width]
    }

    /// One linear layer with its LoRA pair.
    fn apply(
        &self,
        linear: &Linear<B>,
        x: &B::Matrix,
        beside: &Beside<'_, B>,
        inner: &mut Inner<B>,
    ) -> Outcome<B::Matrix> {
        let [y] = self.apply_all([linear], x, beside, inner);
        y
    }

    /// Linear layers that read the same input, with their LoRA pairs.
    fn apply_all<const COUNT: usize>(
        &self,
        linears: [&Linear<B>; COUNT],
        x: &B::Matrix,
        beside: &Beside<'_, B>,
        inner: &mut Inner<B>,
    ) -> [Outcome<B::Matrix>; COUNT] {
        let backend = &self.backend;
        if let Some(runs) = &beside.runs {
            let runs: Vec<LoraGroup<'_, B, COUNT>> = runs
                .iter()
                .map(|run| LoraGroup {
                    rows: run.rows.clone(),
                    pairs: linears.map(|linear| run.adapter.pairs[linear.pair].as_ref()),
                })
                .collect();
            return backend.linears_grouped_lora(x, linears.map(|linear| &linear.weight), &runs);
        }
        let scale = beside.adapter.map_or(0.0, |adapter| adapter.scale);
        let pair_of = |linear: &Linear<B>| beside.adapter?.pairs[linear.pair].as_ref();
        let made = if beside.is_dropping() {
            // Each pair reads a copy of its own.
            linears.map(|linear| {
                let mut y = backend.linear(x, &linear.weight)?;
                let Some(pair) = pair_of(linear) else { return Ok((y, None)) };
                let dropped = beside.dropped(backend, x, linear.pair)?;
                let x = dropped.as_ref().unwrap_or(x);
                let between = backend.lora(x, pair, scale, &mut y)?;
                Ok((y, Some(between)))
            })
        } else {
            let layers =
                linears.map(|linear| LoraLinear { weight: &linear.weight, pair: pair_of(linear) });
            backend.linears(x, layers, scale)
        };
        let mut pairs = linears.iter().map(|linear| linear.pair);
        made.map(|made| {
            let pair = pairs.next();
            let (y, between) = made?;
            if let (Some(pair), Some(between), Some(inner)) = (pair, between, inner.as_mut()) {
                inner.insert(pair, between);
            }
            Ok(y)
        })
    }
}

impl<B: Backend> Mlp<B> {
    /// The layer back to the residual stream.
    pub(super) fn down(&self) -> &Linear<B> {
        match self {
            Self::Gated { down, .. } | Self::FusedGated { down, .. } | Self::Plain { down, .. } => {
                down
            }
        }
    }
}
