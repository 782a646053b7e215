//! Packs sequences into one batch. A prefix that several of them share (a system prompt, tools, the prompt of two
//! answers) is in it once: the sequences become a tree of segments, each of which sees its prefix.

use std::ops::Range;

use crate::train::backend::Segment;
use crate::train::data::sequence::Sequence;
use crate::train::rng::Stream;

/// Least tokens of a shared prefix that become a segment of their own.
const MIN_SHARED_PREFIX: usize = 16;

/// A packed batch: token ids, each token's position in its own sequence, the segments, and the rows
/// whose next token counts, with that token.
#[derive(Debug, Default)]
pub struct PackedBatch {
    /// Token ids.
    pub ids: Vec<u32>,
    /// Position of each token in its own sequence.
    pub positions: Vec<u32>,
    /// The segments, which say which rows see which.
    pub segments: Vec<Segment>,
    /// Rows that predict a supervised token.
    pub loss_rows: Vec<u32>,
    /// The tokens they should predict.
    pub targets: Vec<u32>,
    /// For each sequence, the range of its `targets`.
    pub loss_ranges: Vec<Range<usize>>,
    /// For each sequence, the index of the segment that last_segments it.
    pub last_segments: Vec<usize>,
    /// Decide on each token's dropout; empty without.
    pub dropout_streams: Vec<Stream>,
}

impl PackedBatch {
    /// Packs `sequences`. With dropout streams, one for each, no prefix is shared: dropout of a shared token would
    /// be the same for all sequences.
    pub fn new(sequences: &[&Sequence], dropout_streams: &[Stream]) -> Self {
        let (loss_ranges, last_segments) = (vec![0..0; sequences.len()], vec![0; sequences.len()]);
        let batch = Self { loss_ranges, last_segments, ..Self::default() };
        let mut packer = Packer { sequences, dropout_streams, batch };
        let all: Vec<usize> = (0..sequences.len()).collect();
        packer.branch(&all, 0, &[]);
        packer.batch
    }
}

/// Length of the prefix of a sequence that others may share. The row that predicts its first supervised token is
/// not shared, so that every loss belongs to one sequence.
fn shareable_prefix(sequence: &Sequence) -> usize {
    let first = sequence.loss_mask.iter().skip(1).position(|counts| *counts);
    first.unwrap_or_else(|| sequence.input_ids.len().saturating_sub(1))
}

/// Length of the prefix that two sequences can share. It is even, so that a token's result does not depend on the
/// rest of the batch, to the last bit.
fn shared_prefix(a: &Sequence, b: &Sequence) -> usize {
    let limit = shareable_prefix(a).min(shareable_prefix(b));
    let pairs = a.input_ids.iter().zip(&b.input_ids).take(limit);
    pairs.take_while(|(a, b)| a == b).count() / 2 * 2
}

/// Length of the longest prefix that two of the sequences can share in a batch.
pub fn longest_shared_prefix<'a>(sequences: impl Iterator<Item = &'a Sequence>) -> usize {
    let mut sorted: Vec<&Sequence> = sequences.collect();
    // Sequences with the same prefix are adjacent.
    sorted.sort_unstable_by(|a, b| a.input_ids.cmp(&b.input_ids));
    let most = sorted.windows(2).map(|pair| shared_prefix(pair[0], pair[1])).max().unwrap_or(0);
    if most < MIN_SHARED_PREFIX { 0 } else { most }
}

/// Number of tokens of a batch to which sequences are added.
#[derive(Clone, Default)]
struct BatchTokens<'a> {
    sequences: Vec<&'a Sequence>,
    tokens: usize,
    /// The longest prefix that two of them share.
    longest: usize,
}

impl<'a> BatchTokens<'a> {
    fn join(&mut self, sequence: &'a Sequence, is_sharing: bool) {
        let common = match is_sharing {
            true => {
                self.sequences.iter().map(|other| shared_prefix(sequence, other)).max().unwrap_or(0)
            }
            false => 0,
        };
        let common = if common < MIN_SHARED_PREFIX { 0 } else { common };
        self.tokens += sequence.input_ids.len() - common;
        self.longest = self.longest.max(common);
        self.sequences.push(sequence);
    }
}

/// Splits items of one or more sequences into micro-batches of at least one item. A micro-batch has at most
/// `most` tokens beside its longest shared prefix, or as many as this prefix has, because each further
/// micro-batch would compute the prefix again. Items are not split.
pub fn split_into_micro_batches(
    items: &[&[&Sequence]],
    most: usize,
    is_sharing: bool,
) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    let mut count = BatchTokens::default();
    for (index, item) in items.iter().enumerate() {
        let mut joined = count.clone();
        item.iter().for_each(|sequence| joined.join(sequence, is_sharing));
        match runs.last_mut() {
            Some(run) if joined.tokens - joined.longest <= most.max(joined.longest) => {
                run.end = index + 1;
                count = joined;
            }
            _ => {
                runs.push(index..index + 1);
                count = BatchTokens::default();
                item.iter().for_each(|sequence| count.join(sequence, is_sharing));
            }
        }
    }
    runs
}

struct Packer<'a> {
    sequences: &'a [&'a Sequence],
    dropout_streams: &'a [Stream],
    batch: PackedBatch,
}

impl Packer<'_> {
    /// Packs the sequences of these indexes, whose first `from` tokens are the rows `before`.
    fn branch(&mut self, indexes: &[usize], from: usize, before: &[Range<usize>]) {
        let mut left = indexes.to_vec();
        while !left.is_empty() {
            let first = self.sequences[left[0]];
            let mut common = usize::MAX;
            let mut others = Vec::new();
            let mut members = Vec::new();
            for index in left {
                let length = match members.is_empty() {
                    true => shareable_prefix(first),
                    false => shared_prefix(first, self.sequences[index]),
                };
                if members.is_empty()
                    || (self.dropout_streams.is_empty() && length >= from + MIN_SHARED_PREFIX)
                {
                    members.push(index);
                    common = common.min(length);
                } else {
                    others.push(index);
                }
            }
            left = others;
            if let [only] = members[..] {
                self.leaf(only, from, before);
                continue;
            }
            let rows = self.append(members[0], from..common);
            self.batch.segments.push(Segment { rows: rows.clone(), before: before.to_vec() });
            self.branch(&members, common, &[before, &[rows]].concat());
        }
    }

    /// Packs the rest of a sequence, with its losses.
    fn leaf(&mut self, index: usize, from: usize, before: &[Range<usize>]) {
        let sequence = self.sequences[index];
        let rows = self.append(index, from..sequence.input_ids.len());
        let first_target = self.batch.targets.len();
        for (position, counts) in sequence.loss_mask.iter().enumerate().skip(1) {
            if *counts {
                self.batch.loss_rows.push((rows.start + position - 1 - from) as u32);
                self.batch.targets.push(sequence.input_ids[position]);
            }
        }
        self.batch.loss_ranges[index] = first_target..self.batch.targets.len();
        self.batch.last_segments[index] = self.batch.segments.len();
        self.batch.segments.push(Segment { rows, before: before.to_vec() });
    }

    /// Appends tokens of a sequence; returns their rows.
    fn append(&mut self, index: usize, tokens: Range<usize>) -> Range<usize> {
        let start = self.batch.ids.len();
        let sequence = self.sequences[index];
        self.batch.ids.extend_from_slice(&sequence.input_ids[tokens.clone()]);
        self.batch.positions.extend(tokens.clone().map(|position| position as u32));
        if let Some(draw) = self.dropout_streams.get(index) {
            self.batch.dropout_streams.extend(tokens.map(|position| draw.child(position as u64)));
        }
        start..self.batch.ids.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tokens, of which those from `supervised_from` on count.
    fn sequence(input_ids: Vec<u32>, supervised_from: usize) -> Sequence {
        let loss_mask = (0..input_ids.len()).map(|index| index >= supervised_from).collect();
        Sequence { input_ids, loss_mask }
    }

    /// `shared` tokens of one kind, then `own` of another.
    fn of(kind: u32, shared: usize, own_kind: u32, own: usize) -> Sequence {
        let mut ids = vec![kind; shared];
        ids.extend(vec![own_kind; own]);
        sequence(ids, shared + own / 2)
    }

    /// The tokens that each row sees, itself last.
    fn seen(batch: &PackedBatch, segment: &Segment) -> Vec<u32> {
        segment.seen().flatten().map(|row| batch.ids[row]).collect()
    }

    #[test]
    fn a_shared_prefix_is_packed_once_and_every_sequence_is_whole() {
        let sequences = [of(1, 100, 2, 20), of(3, 40, 4, 8), of(1, 100, 5, 30), of(1, 60, 6, 10)];
        let all: Vec<&Sequence> = sequences.iter().collect();
        let batch = PackedBatch::new(&all, &[]);
        assert_eq!(batch.ids.len(), 60 + 40 + 20 + 30 + 10 + 48, "{:?}", batch.segments);
        let mut next = 0;
        for segment in &batch.segments {
            assert_eq!(segment.rows.start, next, "in order, without gaps");
            next = segment.rows.end;
            let first = segment.keys() - segment.rows.len();
            let positions: Vec<u32> = (first as u32..segment.keys() as u32).collect();
            assert_eq!(batch.positions[segment.rows.clone()], positions);
        }
        let made = batch.loss_ranges.iter().zip(&batch.last_segments);
        for (sequence, (loss_ranges, end)) in sequences.iter().zip(made) {
            assert_eq!(loss_ranges.len() as u64, sequence.targets());
            let row = batch.loss_rows[loss_ranges.start] as usize;
            let segment = &batch.segments[*end];
            assert!(segment.rows.contains(&row));
            assert_eq!(seen(&batch, segment), sequence.input_ids);
            let supervised_from = sequence.input_ids.len() - loss_ranges.len();
            assert_eq!(batch.targets[loss_ranges.clone()], sequence.input_ids[supervised_from..]);
        }
    }

    #[test]
    fn short_supervised_and_dropped_prefixes_are_not_shared() {
        let short = [of(1, MIN_SHARED_PREFIX - 1, 2, 9), of(1, MIN_SHARED_PREFIX - 1, 3, 9)];
        let supervised_from = [sequence(vec![1; 50], 10), sequence(vec![1; 60], 10)];
        for pair in [&short, &supervised_from] {
            let all: Vec<&Sequence> = pair.iter().collect();
            let tokens: usize = pair.iter().map(|sequence| sequence.input_ids.len()).sum();
            assert_eq!(PackedBatch::new(&all, &[]).ids.len(), tokens);
        }
        let long = [of(1, 100, 2, 9), of(1, 100, 3, 9)];
        let all: Vec<&Sequence> = long.iter().collect();
        let stream = Stream::new(1, "dropout", 1);
        let batch = PackedBatch::new(&all, &[stream.child(0), stream.child(1)]);
        assert_eq!((batch.ids.len(), batch.dropout_streams.len()), (218, 218));
    }

    #[test]
    fn micro_batches_count_a_shared_prefix_once() {
        let tuned: Vec<Sequence> = (0..8).map(|kind| of(1, 500, 10 + kind, 100)).collect();
        let other = of(2, 1500, 3, 100);
        let tuned: Vec<[&Sequence; 1]> = tuned.iter().map(|sequence| [sequence]).collect();
        let mut items: Vec<&[&Sequence]> = tuned.iter().map(|item| item.as_slice()).collect();
        assert!(
            matches!(&split_into_micro_batches(&items, 1000, true)[..], [all] if *all == (0..8))
        );
        assert_eq!(split_into_micro_batches(&items, 600, true), [0..6, 6..8]);
        assert_eq!(
            split_into_micro_batches(&items, 100, true),
            [0..5, 5..8],
            "as many as the prefix has"
        );
        assert_eq!(split_into_micro_batches(&items, 1000, false).len(), 8);
        let other = [&other];
        items.insert(4, &other);
        assert_eq!(split_into_micro_batches(&items, 1000, true), [0..4, 4..5, 5..9]);
    }
}
