//! The frozen layer cache: outputs of the layers below all that trains. They never change, so these layers need
//! to run over a sequence once, not once an epoch.
//!
//! A row of the residual stream after them depends on the tokens up to its own only. So rows are cached in
//! chunks of a few tokens, each under a digest of all tokens from the start of the sequence to the end of the
//! chunk. A prefix that many examples share is cached once.

use std::collections::HashMap;
use std::ops::Range;

use sha2::{Digest, Sha256};

use super::Decoder;
use super::adapter::LoraAdapter;
use super::forward::{AdapterContext, AttentionContext};
use super::pack::PackedBatch;
use crate::train::backend::{Backend, Outcome, Segment};

/// Tokens of a chunk; the last one of a sequence may be shorter.
const CHUNK: usize = 16;

/// Bytes of a chunk beside its rows: its key and slot in the table, and the allocator's.
const CHUNK_OVERHEAD: u64 = 128;

/// SHA-256 of the tokens from the start of a sequence to the end of a chunk.
type Key = [u8; 32];

/// Rows of the residual stream after the frozen layers, in host memory.
pub struct FrozenLayerCache {
    /// Number of frozen layers, from the first on, with the embedding before them.
    layers: usize,
    /// Floats of a row.
    width: usize,
    /// Most bytes that it may use.
    budget: u64,
    used: u64,
    /// Whether a chunk did not fit. Nothing is evicted: in whole epochs over a shuffled file every chunk is read
    /// as often as any other.
    is_full: bool,
    chunks: HashMap<Key, Box<[f32]>>,
    hit_tokens: u64,
}

impl FrozenLayerCache {
    /// A cache for a model whose first `layers` layers are frozen, with rows of `width` floats. Nothing is
    /// cached before a budget is set.
    pub fn new(layers: usize, width: usize) -> Self {
        let chunks = HashMap::new();
        Self { layers, width, budget: 0, used: 0, is_full: false, chunks, hit_tokens: 0 }
    }

    /// Number of frozen layers, from the first on.
    pub fn layers(&self) -> usize {
        self.layers
    }

    /// Sets how many bytes it may use.
    pub fn set_budget(&mut self, bytes: u64) {
        self.budget = bytes;
        self.is_full = false;
    }

    /// Capacity in tokens, if no sequences share a prefix.
    pub fn capacity(&self) -> u64 {
        if self.layers == 0 {
            return 0;
        }
        let chunk = self.bytes(CHUNK);
        self.budget / chunk * CHUNK as u64
    }

    /// Tokens of sequences that were found in the cache so far.
    pub fn hit_tokens(&self) -> u64 {
        self.hit_tokens
    }

    /// Bytes of a chunk of so many tokens.
    fn bytes(&self, tokens: usize) -> u64 {
        CHUNK_OVERHEAD + (tokens * self.width * size_of::<f32>()) as u64
    }

    /// Copies cached `sequences` into `stream`, `[rows of the pass, width]`; returns those that are not wholly
    /// cached.
    fn read<'a>(
        &self,
        sequences: &'a [BatchSequence],
        stream: &mut [f32],
    ) -> Vec<&'a BatchSequence> {
        let mut missing = Vec::new();
        for sequence in sequences {
            let chunks: Option<Vec<_>> =
                sequence.keys.iter().map(|key| self.chunks.get(key)).collect();
            let Some(chunks) = chunks else {
                missing.push(sequence);
                continue;
            };
            let rows = chunks.into_iter().flat_map(|chunk| chunk.chunks_exact(self.width));
            copy_rows(&sequence.rows, rows, stream);
        }
        missing
    }

    /// Caches the new chunks of `sequences`, as far as the budget allows.
    fn insert(&mut self, sequences: &[&BatchSequence], stream: &[f32]) {
        for sequence in sequences {
            for (rows, key) in sequence.rows.chunks(CHUNK).zip(&sequence.keys) {
                if self.is_full {
                    return;
                }
                if self.chunks.contains_key(key) {
                    continue;
                }
                let bytes = self.bytes(rows.len());
                if self.used + bytes > self.budget {
                    self.is_full = true;
                    return;
                }
                self.used += bytes;
                let mut chunk = Vec::with_capacity(rows.len() * self.width);
                for row in rows {
                    chunk.extend_from_slice(&stream[row * self.width..][..self.width]);
                }
                self.chunks.insert(*key, chunk.into_boxed_slice());
            }
        }
    }
}

/// Copies rows to the given rows of `stream`.
fn copy_rows<'a>(places: &[usize], rows: impl Iterator<Item = &'a [f32]>, stream: &mut [f32]) {
    for (place, row) in places.iter().zip(rows) {
        stream[place * row.len()..][..row.len()].copy_from_slice(row);
    }
}

/// A sequence of a packed batch.
struct BatchSequence {
    /// Its rows in the batch, in order.
    rows: Vec<usize>,
    /// The keys of its chunks.
    keys: Vec<Key>,
}

impl BatchSequence {
    fn tokens(&self) -> u64 {
        self.rows.len() as u64
    }

    /// Every sequence of `batch`.
    fn all(batch: &PackedBatch) -> Vec<Self> {
        let mut sequences = Vec::with_capacity(batch.last_segments.len());
        for end in &batch.last_segments {
            let rows: Vec<usize> = batch.segments[*end].seen().flatten().collect();
            let mut keys = Vec::with_capacity(rows.len().div_ceil(CHUNK));
            let mut digest = Sha256::new();
            for chunk in rows.chunks(CHUNK) {
                for row in chunk {
                    digest.update(batch.ids[*row].to_le_bytes());
                }
                keys.push(digest.clone().finalize().into());
            }
            sequences.push(Self { rows, keys });
        }
        sequences
    }
}

/// The part of a packed batch that some of its sequences occupy.
struct SubBatch {
    /// Its rows, as row numbers of the batch.
    rows: Vec<usize>,
    segments: Vec<Segment>,
}

impl SubBatch {
    fn of(batch: &PackedBatch, sequences: &[&BatchSequence]) -> Self {
        let mut is_seen = vec![false; batch.ids.len()];
        for row in sequences.iter().flat_map(|sequence| &sequence.rows) {
            is_seen[*row] = true;
        }
        let mut rows = Vec::new();
        let mut places = vec![0; batch.ids.len()];
        for (row, place) in places.iter_mut().enumerate() {
            if is_seen[row] {
                *place = rows.len();
                rows.push(row);
            }
        }
        // Texts see whole segments.
        let moved = |run: &Range<usize>| places[run.start]..places[run.start] + run.len();
        let mut segments = Vec::new();
        for segment in batch.segments.iter().filter(|segment| is_seen[segment.rows.start]) {
            let before = segment.before.iter().map(moved).collect();
            segments.push(Segment { rows: moved(&segment.rows), before });
        }
        Self { rows, segments }
    }
}

impl<B: Backend> Decoder<B> {
    /// The residual stream of the whole batch after the frozen layers: cached rows are read, the others are
    /// computed. `ids` and `positions` are the batch's.
    pub(super) fn frozen_layers_output(
        &self,
        adapter: Option<&LoraAdapter<B>>,
        batch: &PackedBatch,
        (ids, positions): (&B::Indexes, &B::Indexes),
        frozen: &mut FrozenLayerCache,
    ) -> Outcome<B::Matrix> {
        if frozen.capacity() == 0 {
            return self.run_frozen_layers(adapter, ids, positions, &batch.segments, frozen.layers);
        }
        let rows = batch.ids.len();
        let mut stream = vec![0.0; rows * frozen.width];
        let sequences = BatchSequence::all(batch);
        let missing = frozen.read(&sequences, &mut stream);
        frozen.hit_tokens += sequences.iter().map(BatchSequence::tokens).sum::<u64>();
        if !missing.is_empty() {
            frozen.hit_tokens -= missing.iter().map(|sequence| sequence.tokens()).sum::<u64>();
            let backend = &self.backend;
            let part = SubBatch::of(batch, &missing);
            let take =
                |all: &[u32]| -> Vec<u32> { part.rows.iter().map(|row| all[*row]).collect() };
            let ids = backend.indexes(&take(&batch.ids))?;
            let positions = backend.indexes(&take(&batch.positions))?;
            let x =
                self.run_frozen_layers(adapter, &ids, &positions, &part.segments, frozen.layers)?;
            let made = backend.values(&x)?;
            copy_rows(&part.rows, made.chunks_exact(frozen.width), &mut stream);
            frozen.insert(&missing, &stream);
        }
        self.backend.matrix(rows, frozen.width, &stream)
    }

    /// The residual stream after the first `layers` layers.
    fn run_frozen_layers(
        &self,
        adapter: Option<&LoraAdapter<B>>,
        ids: &B::Indexes,
        positions: &B::Indexes,
        segments: &[Segment],
        layers: usize,
    ) -> Outcome<B::Matrix> {
        let x = self.embed(adapter, ids, positions)?;
        let mut attention_context = AttentionContext::Segments(segments);
        Ok(self
            .run_layers(
                0..layers,
                x,
                &AdapterContext::without_dropout(adapter),
                positions,
                &mut attention_context,
                false,
            )?
            .0)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::train::backend::cpu::backend::CpuBackend;
    use crate::train::backend::cpu::isa::Isa;
    use crate::train::backend::{Matrices, RowLoss};
    use crate::train::data::sequence::Sequence;
    use crate::train::decoder::trainable_state::TrainableState;
    use crate::train::model::config::ModelConfig;
    use crate::train::model::lora::{LoraSettings, LoraTarget};
    use crate::train::model::trainable::Trainable;
    use crate::train::model::weights::safetensors;

    fn losses(
        decoder: &Decoder<CpuBackend>,
        trained: &TrainableState<CpuBackend>,
        frozen: &mut FrozenLayerCache,
    ) -> Vec<RowLoss> {
        let of = |own: u32| Sequence {
            input_ids: (0..50).map(|at| if at < 30 { at } else { at + own }).collect(),
            loss_mask: (0..50).map(|at| at > 35).collect(),
        };
        let sequences = [of(1), of(2), of(30)];
        let batch = PackedBatch::new(&sequences.each_ref(), &[]);
        decoder.losses(trained.adapter(), &batch, frozen).expect("computes")
    }

    #[test]
    fn cached_frozen_layers_do_not_run_again() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/golden/llama");
        let text = std::fs::read(folder.join("config.json")).expect("reads");
        let config = serde_json::from_slice(&text).expect("JSON");
        let config = ModelConfig::read(&config).expect("a configuration");
        let (hidden, last) = (config.hidden, config.layers as u32 - 1);
        let weights = safetensors::open(&folder).expect("opens");
        let backend = CpuBackend::new(Isa::Portable);
        let mut decoder = Decoder::load(backend, config, weights.as_ref(), true).expect("loads");
        let target = LoraTarget { modules: None, layers: Some(vec![last]) };
        let lora = Trainable::Lora(LoraSettings { target, ..LoraSettings::new(4, 8.0) });
        let trained = TrainableState::new(&decoder, weights.as_ref(), &lora, 1).expect("fits");

        let layers = decoder.frozen_layers(&trained);
        assert_eq!(layers, last as usize);
        let mut cache = FrozenLayerCache::new(layers, hidden);
        cache.set_budget(1 << 20);
        let first = losses(&decoder, &trained, &mut cache);
        assert!(first.iter().all(|row| row.loss.is_finite()));

        let broken = decoder.backend.vector(&vec![f32::NAN; hidden]).expect("fits");
        decoder.layers[0].attention_norm.norm.weight = broken;
        assert_eq!(losses(&decoder, &trained, &mut cache), first);
        let again = losses(&decoder, &trained, &mut FrozenLayerCache::new(layers, hidden));
        assert!(again.iter().all(|row| row.loss.is_nan()));
    }

    #[test]
    fn a_shared_prefix_is_cached_once_and_a_full_cache_takes_nothing_more() {
        let of = |own: u32| Sequence {
            input_ids: (0..100).map(|at| if at < 90 { 1 } else { own }).collect(),
            loss_mask: (0..100).map(|at| at > 95).collect(),
        };
        let examples = [of(1), of(2), of(3)];
        let batch = PackedBatch::new(&examples.each_ref(), &[]);
        let sequences = BatchSequence::all(&batch);
        let stream: Vec<f32> = (0..batch.ids.len()).flat_map(|row| [row as f32; 2]).collect();
        let all: Vec<&BatchSequence> = sequences.iter().collect();
        let mut frozen = FrozenLayerCache::new(1, 2);
        frozen.set_budget(1 << 20);
        frozen.insert(&all, &stream);
        // Five chunks of 16 that all share; then each one's own 16, and 4 at its end.
        assert_eq!(frozen.chunks.len(), 5 + 3 * 2);
        assert_eq!(frozen.used, 11 * CHUNK_OVERHEAD + 8 * (5 * 16 + 3 * 20));
        let mut read = vec![0.0; stream.len()];
        assert!(frozen.read(&sequences, &mut read).is_empty());
        assert_eq!(read, stream);

        let mut small = FrozenLayerCache::new(1, 2);
        small.set_budget(frozen.used - 1);
        small.insert(&all, &stream);
        assert!(small.used < frozen.used && small.is_full);
        let missing = small.read(&sequences, &mut read);
        let missing: Vec<usize> = missing.iter().map(|sequence| sequence.rows[99]).collect();
        assert_eq!(missing, [sequences[2].rows[99]]);
        // Its part of the batch: the shared prefix, and its own end.
        let part = SubBatch::of(&batch, &[&sequences[2]]);
        let ids: Vec<u32> = part.rows.iter().map(|row| batch.ids[*row]).collect();
        assert_eq!(ids, examples[2].input_ids);
        let last = part.segments.last().expect("a segment");
        assert_eq!(last.seen().flatten().collect::<Vec<_>>(), (0..100).collect::<Vec<_>>());
    }
}
