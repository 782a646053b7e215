//! One tokenised example.

use crate::train::model::flops::SequenceLength;

/// One tokenised example.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sequence {
    /// Token ids.
    pub input_ids: Vec<u32>,
    /// `loss_mask[i]` says whether `input_ids[i]` is a target: predicted from the tokens before it,
    /// and counted. As long as `input_ids`; entry 0 never counts, nothing stands before it.
    pub loss_mask: Vec<bool>,
}

impl Sequence {
    /// Its length in tokens and in tokens that bear loss.
    pub fn length(&self) -> SequenceLength {
        SequenceLength { tokens: self.input_ids.len(), supervised: self.targets() as usize }
    }

    /// Number of tokens that bear loss.
    pub fn targets(&self) -> u64 {
        self.loss_mask.iter().skip(1).filter(|counts| **counts).count() as u64
    }
}
