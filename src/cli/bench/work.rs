//! What `hone bench train` trains on: random tokens, chat examples, or sequences that are tokenised already.

use std::path::Path;

use anyhow::{Context, bail, ensure};
use clap::ValueEnum;
use serde::Deserialize;

use crate::train::data::sequence::Sequence;
use crate::train::data::tokenize::encode_file;
use crate::train::model::base_model::BaseModel;
use crate::train::rng::Stream;

/// The work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum BenchMode {
    /// Random tokens, as many in every sequence, all of them supervised.
    Dense,
    /// Chat examples of a file, in its order.
    Chat,
    /// Sequences of a file, in its order: a line is {"input_ids": [1, 2], "loss_mask": [false, true]}.
    Tokens,
}

impl BenchMode {
    /// As `--mode` spells it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Dense => "dense",
            Self::Chat => "chat",
            Self::Tokens => "tokens",
        }
    }
}

/// A line of a file in [`BenchMode::Tokens`].
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TokenisedExample {
    input_ids: Vec<u32>,
    loss_mask: Vec<bool>,
}

/// The sequences of a file of chat examples, of up to `most` tokens each.
pub(super) fn chat_sequences(
    path: &Path,
    base: &BaseModel,
    most: usize,
) -> anyhow::Result<Vec<Sequence>> {
    let file =
        encode_file(path, base, most).with_context(|| format!("reading {}", path.display()))?;
    warn_of_long(path, most, file.too_long.len(), file.examples.len());
    let sequences = file.examples.into_iter().flat_map(|example| example.views).collect();
    check_some(path, most, sequences)
}

/// The sequences of a file of tokenised examples, of up to `most` tokens each.
pub(super) fn tokenised_sequences(path: &Path, most: usize) -> anyhow::Result<Vec<Sequence>> {
    let text = std::fs::read_to_string(path);
    let text = text.with_context(|| format!("reading {}", path.display()))?;
    let (mut sequences, mut too_long) = (Vec::new(), 0);
    for (index, line) in text.lines().enumerate() {
        let place = || format!("{}, line {}", path.display(), index + 1);
        let TokenisedExample { input_ids, loss_mask } =
            serde_json::from_str(line).with_context(place)?;
        ensure!(
            input_ids.len() == loss_mask.len(),
            "{}: {} tokens have a loss mask of {}",
            place(),
            input_ids.len(),
            loss_mask.len()
        );
        let sequence = Sequence { input_ids, loss_mask };
        ensure!(sequence.targets() > 0, "{}: no token is supervised", place());
        if sequence.input_ids.len() > most {
            too_long += 1;
            continue;
        }
        sequences.push(sequence);
    }
    warn_of_long(path, most, too_long, sequences.len());
    check_some(path, most, sequences)
}

fn warn_of_long(path: &Path, most: usize, too_long: usize, rest: usize) {
    if too_long > 0 {
        tracing::warn!(
            file = %path.display(),
            "{too_long} of {} examples are longer than {most} tokens and left out: raise --seq",
            too_long + rest
        );
    }
}

fn check_some(path: &Path, most: usize, found: Vec<Sequence>) -> anyhow::Result<Vec<Sequence>> {
    if found.is_empty() {
        bail!("{} holds no example of up to {most} tokens", path.display());
    }
    Ok(found)
}

/// `batch` sequences of `length` random tokens; another step's are others.
pub(super) fn random_batch(batch: u32, length: u32, vocabulary: usize, step: u64) -> Vec<Sequence> {
    let stream = Stream::new(0, "bench", step);
    let token = |index: u64| (stream.bits(index) % vocabulary as u64) as u32;
    let size = u64::from(length);
    (0..u64::from(batch))
        .map(|row| Sequence {
            input_ids: (row * size..(row + 1) * size).map(token).collect(),
            loss_mask: vec![true; length as usize],
        })
        .collect()
}

/// The sequences of a step, from 0, in the file's order; the file begins again where it ends.
pub(super) fn batch_of_file(sequences: &[Sequence], batch: u32, step: u64) -> Vec<Sequence> {
    let first = step as usize * batch as usize % sequences.len();
    sequences.iter().cycle().skip(first).take(batch as usize).cloned().collect()
}
