//! What the frozen blocks make of a text, kept. Nothing in the blocks below all that trains ever
//! changes, so they need to run over a text once, not once an epoch.
//!
//! A row of the residual stream behind them depends on the tokens up to its own and on nothing else.
//! So rows are kept by text: in pieces of a few tokens, each under a digest of all tokens from the
//! text's beginning to the end of the piece. A beginning that many examples share is kept once.

use std::collections::HashMap;
use std::ops::Range;

use sha2::{Digest, Sha256};

use super::Decoder;
use super::adapter::Adapter;
use super::forward::{Beside, Sight};
use super::pack::PackedBatch;
use crate::train::backend::{Backend, Outcome, Segment};

/// Tokens of a piece; a text's last one may be shorter.
const PIECE: usize = 16;

/// Bytes that a piece takes beside its rows: its key and place in the table, and the allocator's.
const OVERHEAD: u64 = 128;

/// SHA-256 of the tokens from a text's beginning to the end of a piece.
type Key = [u8; 32];

/// Rows of the residual stream behind the frozen blocks, in the host's memory.
pub struct FrozenRows {
    /// How many blocks are frozen, from the first on, with all that stands before them.
    blocks: usize,
    /// Floats of a row.
    width: usize,
    /// Bytes that may be taken.
    budget: u64,
    taken: u64,
    /// Whether a piece did not fit. Nothing makes room for it: in whole epochs over a shuffled file
    /// every piece is wanted as often as any other.
    is_full: bool,
    pieces: HashMap<Key, Box<[f32]>>,
    spared: u64,
}

impl FrozenRows {
    /// Of a model whose first `blocks` blocks are frozen, with rows of `width` floats. It keeps
    /// nothing before it has a budget.
    pub fn new(blocks: usize, width: usize) -> Self {
        let pieces = HashMap::new();
        Self { blocks, width, budget: 0, taken: 0, is_full: false, pieces, spared: 0 }
    }

    /// How many blocks are frozen, from the first on.
    pub fn blocks(&self) -> usize {
        self.blocks
    }

    /// Lets it take up to so many bytes.
    pub fn set_budget(&mut self, bytes: u64) {
        self.budget = bytes;
        self.is_full = false;
    }

    /// Tokens that it has room for, if no text begins like another.
    pub fn room(&self) -> u64 {
        if self.blocks == 0 {
            return 0;
        }
        let piece = self.bytes(PIECE);
        self.budget / piece * PIECE as u64
    }

    /// Tokens of the texts that the frozen blocks did not have to run over, so far.
    pub fn spared(&self) -> u64 {
        self.spared
    }

    /// Bytes of a piece of so many tokens.
    fn bytes(&self, tokens: usize) -> u64 {
        OVERHEAD + (tokens * self.width * size_of::<f32>()) as u64
    }

    /// Copies what is kept of `texts` into `stream`, `[rows of the pass, width]`; the texts that are
    /// not all there.
    fn read<'a>(&self, texts: &'a [Text], stream: &mut [f32]) -> Vec<&'a Text> {
        let mut missing = Vec::new();
        for text in texts {
            let pieces: Option<Vec<_>> = text.keys.iter().map(|key| self.pieces.get(key)).collect();
            let Some(pieces) = pieces else {
                missing.push(text);
                continue;
            };
            let rows = pieces.into_iter().flat_map(|piece| piece.chunks_exact(self.width));
            put(&text.rows, rows, stream);
        }
        missing
    }

    /// Keeps what is new of `texts`, as far as the budget allows.
    fn keep(&mut self, texts: &[&Text], stream: &[f32]) {
        for text in texts {
            for (rows, key) in text.rows.chunks(PIECE).zip(&text.keys) {
                if self.is_full {
                    return;
                }
                if self.pieces.contains_key(key) {
                    continue;
                }
                let bytes = self.bytes(rows.len());
                if self.taken + bytes > self.budget {
                    self.is_full = true;
                    return;
                }
                self.taken += bytes;
                let mut piece = Vec::with_capacity(rows.len() * self.width);
                for row in rows {
                    piece.extend_from_slice(&stream[row * self.width..][..self.width]);
                }
                self.pieces.insert(*key, piece.into_boxed_slice());
            }
        }
    }
}

/// Copies rows to their places in `stream`.
fn put<'a>(places: &[usize], rows: impl Iterator<Item = &'a [f32]>, stream: &mut [f32]) {
    for (place, row) in places.iter().zip(rows) {
        stream[place * row.len()..][..row.len()].copy_from_slice(row);
    }
}

/// A sequence of a packed batch.
struct Text {
    /// Its rows in the batch, in the order of the text.
    rows: Vec<usize>,
    /// Those of its pieces.
    keys: Vec<Key>,
}

impl Text {
    fn tokens(&self) -> u64 {
        self.rows.len() as u64
    }

    /// Every sequence of `batch`.
    fn all(batch: &PackedBatch) -> Vec<Self> {
        let mut texts = Vec::with_capacity(batch.ends.len());
        for end in &batch.ends {
            let rows: Vec<usize> = batch.segments[*end].seen().flatten().collect();
            let mut keys = Vec::with_capacity(rows.len().div_ceil(PIECE));
            let mut digest = Sha256::new();
            for piece in rows.chunks(PIECE) {
                for row in piece {
                    digest.update(batch.ids[*row].to_le_bytes());
                }
                keys.push(digest.clone().finalize().into());
            }
            texts.push(Self { rows, keys });
        }
        texts
    }
}

/// The part of a packed batch that some of its texts stand in.
struct Part {
    /// Its rows, as numbers of the batch's.
    rows: Vec<usize>,
    segments: Vec<Segment>,
}

impl Part {
    fn of(batch: &PackedBatch, texts: &[&Text]) -> Self {
        let mut is_seen = vec![false; batch.ids.len()];
        for row in texts.iter().flat_map(|text| &text.rows) {
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
    /// The residual stream of the whole batch behind the frozen blocks: what is kept of it, and the
    /// rest computed. `ids` and `positions` are the batch's.
    pub(super) fn behind_frozen(
        &self,
        adapter: Option<&Adapter<B>>,
        batch: &PackedBatch,
        (ids, positions): (&B::Indexes, &B::Indexes),
        frozen: &mut FrozenRows,
    ) -> Outcome<B::Matrix> {
        if frozen.room() == 0 {
            return self.run_frozen(adapter, ids, positions, &batch.segments, frozen.blocks);
        }
        let rows = batch.ids.len();
        let mut stream = vec![0.0; rows * frozen.width];
        let texts = Text::all(batch);
        let missing = frozen.read(&texts, &mut stream);
        frozen.spared += texts.iter().map(Text::tokens).sum::<u64>();
        if !missing.is_empty() {
            frozen.spared -= missing.iter().map(|text| text.tokens()).sum::<u64>();
            let backend = &self.backend;
            let part = Part::of(batch, &missing);
            let take =
                |all: &[u32]| -> Vec<u32> { part.rows.iter().map(|row| all[*row]).collect() };
            let ids = backend.indexes(&take(&batch.ids))?;
            let positions = backend.indexes(&take(&batch.positions))?;
            let x = self.run_frozen(adapter, &ids, &positions, &part.segments, frozen.blocks)?;
            let made = backend.values(&x)?;
            put(&part.rows, made.chunks_exact(frozen.width), &mut stream);
            frozen.keep(&missing, &stream);
        }
        self.backend.matrix(rows, frozen.width, &stream)
    }

    /// The residual stream behind the first `blocks` blocks.
    fn run_frozen(
        &self,
        adapter: Option<&Adapter<B>>,
        ids: &B::Indexes,
        positions: &B::Indexes,
        segments: &[Segment],
        blocks: usize,
    ) -> Outcome<B::Matrix> {
        let x = self.embed(adapter, ids, positions)?;
        let mut sight = Sight::Segments(segments);
        Ok(self.run_blocks(0..blocks, x, &Beside::plain(adapter), positions, &mut sight, false)?.0)
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
    use crate::train::decoder::trained::Trained;
    use crate::train::model::config::ModelConfig;
    use crate::train::model::lora::{LoraSettings, LoraTarget};
    use crate::train::model::trainable::Trainable;
    use crate::train::model::weights::safetensors;

    fn losses(
        decoder: &Decoder<CpuBackend>,
        trained: &Trained<CpuBackend>,
        frozen: &mut FrozenRows,
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
    fn frozen_blocks_that_would_break_every_loss_are_not_asked_again() {
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
        let trained = Trained::new(&decoder, weights.as_ref(), &lora, 1).expect("fits");

        let blocks = decoder.frozen_blocks(&trained);
        assert_eq!(blocks, last as usize);
        let mut kept = FrozenRows::new(blocks, hidden);
        kept.set_budget(1 << 20);
        let first = losses(&decoder, &trained, &mut kept);
        assert!(first.iter().all(|row| row.loss.is_finite()));

        let broken = decoder.backend.vector(&vec![f32::NAN; hidden]).expect("fits");
        decoder.blocks[0].attention_norm.norm.weight = broken;
        assert_eq!(losses(&decoder, &trained, &mut kept), first);
        let again = losses(&decoder, &trained, &mut FrozenRows::new(blocks, hidden));
        assert!(again.iter().all(|row| row.loss.is_nan()));
    }

    #[test]
    fn a_beginning_is_kept_once_and_a_full_budget_takes_nothing_more() {
        let of = |own: u32| Sequence {
            input_ids: (0..100).map(|at| if at < 90 { 1 } else { own }).collect(),
            loss_mask: (0..100).map(|at| at > 95).collect(),
        };
        let sequences = [of(1), of(2), of(3)];
        let batch = PackedBatch::new(&sequences.each_ref(), &[]);
        let texts = Text::all(&batch);
        let stream: Vec<f32> = (0..batch.ids.len()).flat_map(|row| [row as f32; 2]).collect();
        let all: Vec<&Text> = texts.iter().collect();
        let mut frozen = FrozenRows::new(1, 2);
        frozen.set_budget(1 << 20);
        frozen.keep(&all, &stream);
        // Five pieces of 16 that all share; then each one's own 16, and 4 at its end.
        assert_eq!(frozen.pieces.len(), 5 + 3 * 2);
        assert_eq!(frozen.taken, 11 * OVERHEAD + 8 * (5 * 16 + 3 * 20));
        let mut read = vec![0.0; stream.len()];
        assert!(frozen.read(&texts, &mut read).is_empty());
        assert_eq!(read, stream);

        let mut small = FrozenRows::new(1, 2);
        small.set_budget(frozen.taken - 1);
        small.keep(&all, &stream);
        assert!(small.taken < frozen.taken && small.is_full);
        let missing = small.read(&texts, &mut read);
        let missing: Vec<usize> = missing.iter().map(|text| text.rows[99]).collect();
        assert_eq!(missing, [texts[2].rows[99]]);
        // The part of the batch that it stands in: the beginning that is shared, and its own end.
        let part = Part::of(&batch, &[&texts[2]]);
        let ids: Vec<u32> = part.rows.iter().map(|row| batch.ids[*row]).collect();
        assert_eq!(ids, sequences[2].input_ids);
        let last = part.segments.last().expect("a segment");
        assert_eq!(last.seen().flatten().collect::<Vec<_>>(), (0..100).collect::<Vec<_>>());
    }
}
