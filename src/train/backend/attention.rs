//! Attention over the segments of a packed batch.

use std::ops::Range;

use super::error::Outcome;
use super::matrices::Matrices;

/// Attention over packed batches, for training and evaluation. Every backend has it.
pub trait AttentionOps: Matrices {
    /// Causal attention of each segment over its prefix and itself. Returns the output, and what the backward
    /// pass needs beside it.
    fn attention(
        &self,
        queries: &Self::Matrix,
        keys: &Self::Matrix,
        values: &Self::Matrix,
        segments: &[Segment],
        shape: &AttentionShape,
    ) -> Outcome<(Self::Matrix, Self::Matrix)>;
    /// Gradients of queries, keys and values.
    #[expect(
        clippy::too_many_arguments,
        reason = "operands and results of forward, and a gradient"
    )]
    fn attention_backward(
        &self,
        gradient: &Self::Matrix,
        queries: &Self::Matrix,
        keys: &Self::Matrix,
        values: &Self::Matrix,
        output: &Self::Matrix,
        saved: &Self::Matrix,
        segments: &[Segment],
        shape: &AttentionShape,
    ) -> Outcome<[Self::Matrix; 3]>;
}

/// The shape of attention in one layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionShape {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Factor on the scores.
    pub scale: f32,
    /// A query sees itself and the `window - 1` tokens before it; with `None` all tokens before it.
    pub window: Option<usize>,
    /// Scores s become cap·tanh(s / cap).
    pub soft_cap: Option<f32>,
}

/// Rows of a packed batch, and the prefix before them in their sequence. A batch's segments hold its rows in
/// order, without gaps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// Its own rows.
    pub rows: Range<usize>,
    /// Ranges of rows before them, in the order of the sequence: prefixes that it shares with others.
    pub before: Vec<Range<usize>>,
}

impl Segment {
    /// A segment without a prefix.
    pub fn alone(rows: Range<usize>) -> Self {
        Self { rows, before: Vec::new() }
    }

    /// Ranges of the rows that its last row sees, in the order of the sequence.
    pub fn seen(&self) -> impl Iterator<Item = Range<usize>> {
        self.before.iter().cloned().chain(std::iter::once(self.rows.clone()))
    }

    /// Number of rows that its last row sees.
    pub fn keys(&self) -> usize {
        self.seen().map(|rows| rows.len()).sum()
    }
}
