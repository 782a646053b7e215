//! The examples of a file, counted as they pass by.

use std::path::Path;

use super::flops::{FlopEstimate, SequenceFlops};
use crate::dataset::{Diagnostics, MAX_LISTED_PROBLEMS};
use crate::train::data::example::EncodedExample;
use crate::train::data::sequence::Sequence;
use crate::train::data::tokenize::{EncodeError, encode_each};
use crate::train::model::base_model::BaseModel;
use crate::train::protocol::DataCount;
use crate::train::run::setup::DataTotals;

/// Tokens of the first examples of a file that are kept, so that their beginnings can be compared: all
/// of most files, and some 80 MB of any.
const KEPT_TOKENS: usize = 1 << 24;

/// A file, counted.
pub(super) struct TokenCount {
    pub(super) data: DataCount,
    /// What one pass over it takes.
    pub(super) flops: SequenceFlops,
    /// What the user should look at, though the file can be used.
    pub(super) warnings: Diagnostics,
    /// The first examples.
    first: Vec<EncodedExample>,
    first_tokens: usize,
}

impl TokenCount {
    /// Reads a file. Operations are counted where `flops` says how.
    pub(super) fn read(
        path: &Path,
        base: &BaseModel,
        context: usize,
        flops: Option<&FlopEstimate>,
    ) -> Result<Self, EncodeError> {
        let mut made = Self::new();
        let found = encode_each(path, base, &mut |example| made.take(example, context, flops))?;
        made.warnings = found.warnings;
        Ok(made)
    }

    /// Of these sequences.
    #[cfg(test)]
    pub(super) fn of(sequences: impl Iterator<Item = Sequence>) -> Self {
        let mut made = Self::new();
        for sequence in sequences {
            made.take(
                EncodedExample { line: 1, views: vec![sequence], rejected: None },
                usize::MAX,
                None,
            );
        }
        made
    }

    fn new() -> Self {
        Self {
            data: DataCount::default(),
            flops: SequenceFlops::default(),
            warnings: Diagnostics::default(),
            first: Vec::new(),
            first_tokens: 0,
        }
    }

    fn take(&mut self, example: EncodedExample, context: usize, flops: Option<&FlopEstimate>) {
        let data = &mut self.data;
        let longer = example.longest_sequence();
        if longer > context {
            data.left_out += 1;
            if data.left_out_lines.len() < MAX_LISTED_PROBLEMS {
                data.left_out_lines.push((example.line, longer as u64));
            }
            return;
        }
        data.examples += 1;
        let tokens = example.tokens();
        data.loss_tokens += example.targets();
        data.tokens += tokens as u64;
        data.longest = data.longest.max(example.tokens_at_once() as u64);
        if let Some(flops) = flops {
            example.sequences().for_each(|sequence| self.flops.add(&flops.of(sequence)));
        }
        if self.first_tokens < KEPT_TOKENS {
            self.first.push(example);
        }
        self.first_tokens += tokens;
    }

    /// What the plan needs to know of it.
    pub(in crate::train::run) fn totals(&self) -> DataTotals {
        let DataCount { examples, tokens, left_out, .. } = self.data;
        DataTotals { examples, tokens, left_out }
    }

    /// The sequences that are kept.
    pub(super) fn all(&self) -> impl Iterator<Item = &Sequence> {
        self.first.iter().flat_map(EncodedExample::sequences)
    }

    /// The examples that are kept.
    pub(super) fn examples(&self) -> &[EncodedExample] {
        &self.first
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_counted_and_only_the_first_examples_are_kept() {
        const LENGTH: usize = 1 << 20;
        let sequence = |_| Sequence {
            input_ids: vec![7; LENGTH],
            loss_mask: (0..LENGTH).map(|at| at % 4 == 1).collect(),
        };
        let count = TokenCount::of((0..20).map(sequence));
        assert_eq!((count.data.examples, count.data.longest), (20, LENGTH as u64));
        assert_eq!(count.data.tokens, 20 * LENGTH as u64);
        assert_eq!(count.data.loss_tokens, 5 * LENGTH as u64);
        assert_eq!(count.all().count(), KEPT_TOKENS / LENGTH);
        assert_eq!(count.examples().len(), KEPT_TOKENS / LENGTH);
    }

    #[test]
    fn what_does_not_fit_is_left_out_and_the_first_of_it_is_named() {
        let mut count = TokenCount::new();
        for line in 1..=120 {
            let tokens = if line % 2 == 0 { 9 } else { 5 };
            let answer = |tokens: usize| Sequence {
                input_ids: vec![1; tokens],
                loss_mask: (0..tokens).map(|at| at > 2).collect(),
            };
            let rejected = Some(answer(tokens));
            let example = EncodedExample { line, views: vec![answer(3)], rejected };
            count.take(example, 8, None);
        }
        let data = &count.data;
        assert_eq!((data.examples, data.tokens, data.loss_tokens), (60, 60 * 8, 60 * 2));
        assert_eq!((data.left_out, data.longest), (60, 8));
        assert_eq!(data.left_out_lines.len(), MAX_LISTED_PROBLEMS);
        assert_eq!(data.left_out_lines[..2], [(2, 9), (4, 9)]);
        assert!(count.examples().iter().all(|example| example.sequences().count() == 2));
    }
}
