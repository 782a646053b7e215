//! The forward pass through the layers, for training, evaluation and decoding.

use std::collections::BTreeMap;
use std::ops::Range;

use super::adapter::{LoraAdapter, PackedAdapter};
use super::saved_activations::SavedActivations;
use super::{Decoder, DecoderLayer, Linear, Mlp, Qkv};
use crate::train::backend::{
    Backend, CachedRows, LoraGroup, LoraLinear, Matrices, Outcome, Segment,
};
use crate::train::rng::Stream;

/// What the tokens of a pass attend to.
pub(super) enum AttentionContext<'a, B: Backend> {
    /// The segments of a packed batch.
    Segments(&'a [Segment]),
    /// KV caches, which the rows of sequences continue.
    Cached(Vec<CachedRows<'a, B>>),
}

/// Rows of a step and their adapter.
pub(super) struct AdapterGroup<'a, B: Backend> {
    /// The rows.
    pub rows: Range<usize>,
    /// The adapter.
    pub adapter: &'a PackedAdapter<B>,
}

/// The adapters of a pass, and their dropout masks.
pub(super) struct AdapterContext<'a, B: Backend> {
    /// `None` for the base alone.
    pub adapter: Option<&'a LoraAdapter<B>>,
    /// The dropout mask of each pair's input, by pair; empty without dropout.
    masks: BTreeMap<usize, B::DropoutMask>,
    /// Groups of rows with adapters of their own, for decoding only.
    groups: Option<Vec<AdapterGroup<'a, B>>>,
}

impl<'a, B: Backend> AdapterContext<'a, B> {
    /// An adapter without dropout.
    pub(super) fn without_dropout(adapter: Option<&'a LoraAdapter<B>>) -> Self {
        Self { adapter, masks: BTreeMap::new(), groups: None }
    }

    /// Groups of rows with adapters of their own.
    pub(super) fn grouped(groups: Vec<AdapterGroup<'a, B>>) -> Self {
        Self { adapter: None, masks: BTreeMap::new(), groups: Some(groups) }
    }

    /// An adapter with dropout, drawn from one stream for each row; without streams there is no dropout.
    pub(super) fn with_dropout(
        decoder: &Decoder<B>,
        adapter: Option<&'a LoraAdapter<B>>,
        dropout_streams: &[Stream],
    ) -> Outcome<Self> {
        let dropping =
            adapter.filter(|adapter| !dropout_streams.is_empty() && adapter.dropout > 0.0);
        let Some(adapter) = dropping else {
            return Ok(Self::without_dropout(adapter));
        };
        let mut pairs = Vec::new();
        let mut layers = Vec::new();
        for (pair, module) in decoder.modules().iter().enumerate() {
            if adapter.pairs[pair].is_some() {
                pairs.push(pair);
                layers.push((pair as u64, module.inputs));
            }
        }
        let masks = decoder.backend.dropout_masks(dropout_streams, &layers, adapter.dropout)?;
        let masks = pairs.into_iter().zip(masks).collect();
        Ok(Self { adapter: Some(adapter), masks, groups: None })
    }

    /// Whether dropout applies to the input of any pair.
    pub(super) fn has_dropout(&self) -> bool {
        !self.masks.is_empty()
    }

    /// The input of the pair of index `pair` under dropout: a masked copy of its layer's input.
    pub(super) fn dropout(
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

/// x · aᵀ of adapted layers, by pair; `None` when no backward pass follows.
type Inner<B> = Option<BTreeMap<usize, <B as Matrices>::Matrix>>;

impl<B: Backend> Decoder<B> {
    /// The residual stream before the first layer.
    pub(super) fn embed(
        &self,
        adapter: Option<&LoraAdapter<B>>,
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

    /// The residual stream after `layers`, and with `save` their saved activations.
    pub(super) fn run_layers(
        &self,
        layers: Range<usize>,
        mut x: B::Matrix,
        adapters: &AdapterContext<'_, B>,
        positions: &B::Indexes,
        attention_context: &mut AttentionContext<'_, B>,
        save: bool,
    ) -> Outcome<(B::Matrix, Vec<SavedActivations<B>>)> {
        let mut saved = Vec::new();
        for index in layers {
            let (next, layer_saved) =
                self.forward_layer(index, x, adapters, positions, attention_context, save)?;
            x = next;
            saved.extend(layer_saved);
        }
        Ok((x, saved))
    }

    fn forward_layer(
        &self,
        index: usize,
        x: B::Matrix,
        adapters: &AdapterContext<'_, B>,
        positions: &B::Indexes,
        attention_context: &mut AttentionContext<'_, B>,
        save: bool,
    ) -> Outcome<(B::Matrix, Option<SavedActivations<B>>)> {
        let (backend, layer) = (&self.backend, &self.layers[index]);
        let mut inner: Inner<B> = save.then(BTreeMap::new);

        let normed = backend.norm(&x, &layer.attention_norm.norm)?;
        let [mut queries, mut keys, values] = self.qkv(layer, &normed, adapters, &mut inner)?;
        drop(normed);
        let mut raw_queries_and_keys = None;
        if let Some([query_norm, key_norm]) = &layer.qk_norms {
            let normed =
                [backend.norm(&queries, &query_norm.norm)?, backend.norm(&keys, &key_norm.norm)?];
            raw_queries_and_keys = Some([queries, keys]);
            [queries, keys] = normed;
        }
        if let Some(table) = layer.rope.map(|rope| &self.tables[rope]) {
            let head_dim = layer.attention.head_dim;
            backend.rotate(&mut queries, head_dim, table, positions, false)?;
            backend.rotate(&mut keys, head_dim, table, positions, false)?;
        }
        let (attended, attention) = match attention_context {
            AttentionContext::Segments(segments) => {
                backend.attention(&queries, &keys, &values, segments, &layer.attention)?
            }
            AttentionContext::Cached(texts) => {
                let shape = &layer.attention;
                let attended =
                    backend.attend_cached(index, &queries, &keys, &values, texts, shape)?;
                (attended, backend.zeros(0, 1)?)
            }
        };
        let output = self.apply(&layer.output, &attended, adapters, &mut inner)?;

        // Attention joins the residual stream, through its own norm where it has one.
        let (mut middle, mut before_attention_post_norm) = (output, None);
        if let Some([norm, _]) = &layer.post_norms {
            let normed = backend.norm(&middle, &norm.norm)?;
            before_attention_post_norm = Some(std::mem::replace(&mut middle, normed));
        }
        backend.add(&mut middle, &x)?;

        let mlp_input = if self.config.parallel_residual { &x } else { &middle };
        let normed = backend.norm(mlp_input, &layer.mlp_norm.norm)?;
        let (gate, up) = self.mlp_in(&layer.mlp, &normed, adapters, &mut inner)?;
        drop(normed);
        let active = backend.activate(self.activation(), &gate, up.as_ref())?;
        let down = self.apply(layer.mlp.down(), &active, adapters, &mut inner)?;
        drop(active);
        let (mut next, mut before_post_norms) = (down, None);
        if let (Some([_, norm]), Some(first)) = (&layer.post_norms, before_attention_post_norm) {
            let normed = backend.norm(&next, &norm.norm)?;
            before_post_norms = Some([first, std::mem::replace(&mut next, normed)]);
        }
        backend.add(&mut next, &middle)?;
        let middle = (!self.config.parallel_residual).then_some(middle);

        let saved = inner.map(|inner| SavedActivations {
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
        layer: &DecoderLayer<B>,
        normed: &B::Matrix,
        adapters: &AdapterContext<'_, B>,
        inner: &mut Inner<B>,
    ) -> Outcome<[B::Matrix; 3]> {
        match &layer.qkv {
            Qkv::Separate([q, k, v]) => {
                let [q, k, v] = self.apply_all([q, k, v], normed, adapters, inner);
                Ok([q?, k?, v?])
            }
            Qkv::Fused(linear, [q, k, v]) => {
                let all = self.apply(linear, normed, adapters, inner)?;
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
        adapters: &AdapterContext<'_, B>,
        inner: &mut Inner<B>,
    ) -> Outcome<(B::Matrix, Option<B::Matrix>)> {
        match mlp {
            Mlp::Gated { gate, up, .. } => {
                let [gate, up] = self.apply_all([gate, up], normed, adapters, inner);
                Ok((gate?, Some(up?)))
            }
            Mlp::FusedGated { gate_up, .. } => {
                let both = self.apply(gate_up, normed, adapters, inner)?;
                let [gate, up] = self.gate_up_columns();
                let backend = &self.backend;
                let up = backend.gather_columns(&both, &[up])?;
                Ok((backend.gather_columns(&both, &[gate])?, Some(up)))
            }
            Mlp::Plain { up, .. } => Ok((self.apply(up, normed, adapters, inner)?, None)),
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
        adapters: &AdapterContext<'_, B>,
        inner: &mut Inner<B>,
    ) -> Outcome<B::Matrix> {
        let [y] = self.apply_all([linear], x, adapters, inner);
        y
    }

    /// Linear layers that read the same input, with their LoRA pairs.
    fn apply_all<const COUNT: usize>(
        &self,
        linears: [&Linear<B>; COUNT],
        x: &B::Matrix,
        adapters: &AdapterContext<'_, B>,
        inner: &mut Inner<B>,
    ) -> [Outcome<B::Matrix>; COUNT] {
        let backend = &self.backend;
        if let Some(groups) = &adapters.groups {
            let groups: Vec<LoraGroup<'_, B, COUNT>> = groups
                .iter()
                .map(|group| LoraGroup {
                    rows: group.rows.clone(),
                    pairs: linears.map(|linear| group.adapter.pairs[linear.pair].as_ref()),
                })
                .collect();
            return backend.linears_grouped_lora(x, linears.map(|linear| &linear.weight), &groups);
        }
        let scale = adapters.adapter.map_or(0.0, |adapter| adapter.scale);
        let pair_of = |linear: &Linear<B>| adapters.adapter?.pairs[linear.pair].as_ref();
        let made = if adapters.has_dropout() {
            // Each pair reads a masked copy of its own.
            linears.map(|linear| {
                let mut y = backend.linear(x, &linear.weight)?;
                let Some(pair) = pair_of(linear) else { return Ok((y, None)) };
                let dropped = adapters.dropout(backend, x, linear.pair)?;
                let x = dropped.as_ref().unwrap_or(x);
                let pair_inner = backend.lora(x, pair, scale, &mut y)?;
                Ok((y, Some(pair_inner)))
            })
        } else {
            let layers =
                linears.map(|linear| LoraLinear { weight: &linear.weight, pair: pair_of(linear) });
            backend.linears(x, layers, scale)
        };
        let mut pairs = linears.iter().map(|linear| linear.pair);
        made.map(|made| {
            let pair = pairs.next();
            let (y, pair_inner) = made?;
            if let (Some(pair), Some(pair_inner), Some(inner)) = (pair, pair_inner, inner.as_mut())
            {
                inner.insert(pair, pair_inner);
            }
            Ok(y)
        })
    }
}

impl<B: Backend> Mlp<B> {
    /// The projection back to the residual stream.
    pub(super) fn down(&self) -> &Linear<B> {
        match self {
            Self::Gated { down, .. } | Self::FusedGated { down, .. } | Self::Plain { down, .. } => {
                down
            }
        }
    }
}
