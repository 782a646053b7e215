//! Examples as the engine takes them.

use super::sequence::Sequence;

/// An example, tokenised.
#[derive(Debug, Clone)]
pub struct EncodedExample {
    /// Its line in the file.
    pub line: u64,
    /// Its tokens. A conversation whose turns the template renders unlike in their prompts has several views, each
    /// with turns of its own; everything else has one. Of a preference the tokens with the preferred answer.
    pub views: Vec<Sequence>,
    /// Of a preference those with the other answer.
    pub rejected: Option<Sequence>,
}

impl EncodedExample {
    /// Every sequence.
    pub fn sequences(&self) -> impl Iterator<Item = &Sequence> {
        self.views.iter().chain(&self.rejected)
    }

    /// What the engine computes as one, each: a view, or both answers of a preference.
    pub fn items(&self) -> Vec<Vec<&Sequence>> {
        match self.rejected {
            Some(_) => vec![self.sequences().collect()],
            None => self.views.iter().map(|view| vec![view]).collect(),
        }
    }

    /// Tokens of its longest sequence, which must fit into the context.
    pub fn longest_sequence(&self) -> usize {
        self.sequences().map(|sequence| sequence.input_ids.len()).max().unwrap_or(0)
    }

    /// Most tokens of it that run at once: a preference's answers do, views need not.
    pub fn tokens_at_once(&self) -> usize {
        match self.rejected {
            Some(_) => self.tokens(),
            None => self.longest_sequence(),
        }
    }

    /// Tokens of all its sequences.
    pub fn tokens(&self) -> usize {
        self.sequences().map(|sequence| sequence.input_ids.len()).sum()
    }

    /// Number of supervised tokens of all its sequences.
    pub fn targets(&self) -> u64 {
        self.sequences().map(Sequence::targets).sum()
    }
}
