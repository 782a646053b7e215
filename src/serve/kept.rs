//! Keys and values of texts that have ended, for texts that begin alike: the next turn of a
//! conversation, or another one with the same system prompt, is read only from where it differs.
//!
//! What is taken from here is what reading would compute, to the last bit. Owned by
//! [`super::schedule`].

use std::collections::VecDeque;
use std::sync::{Arc, Weak};

use super::loaded::LoadedBase;
use crate::train::engine::TextCache;

/// Fewest tokens that are worth a copy of a page.
const WORTH_KEEPING: usize = 16;

/// What a text was computed with; another model or adapter computes something else.
#[derive(Clone)]
pub(super) struct Kind {
    pub base: Weak<LoadedBase>,
    /// Name of the adapter.
    pub adapter: Option<String>,
}

impl Kind {
    pub fn of(base: &Arc<LoadedBase>, adapter: Option<String>) -> Self {
        Self { base: Arc::downgrade(base), adapter }
    }

    pub fn is(&self, other: &Self) -> bool {
        self.base.ptr_eq(&other.base) && self.adapter == other.adapter
    }
}

/// A text that has ended.
struct Entry {
    kind: Kind,
    tokens: Vec<u32>,
    cache: TextCache,
}

/// Texts that have ended, the one used last at the end.
#[derive(Default)]
pub(super) struct Kept {
    entries: VecDeque<Entry>,
}

/// How many tokens of `prompt` a text of `tokens` has in common with it that are worth taking over:
/// never all of the prompt, whose last token's logits are wanted.
pub(super) fn shared(tokens: &[u32], prompt: &[u32]) -> usize {
    let same = tokens.iter().zip(prompt).take_while(|(one, other)| one == other).count();
    let same = same.min(prompt.len().saturating_sub(1));
    if same < WORTH_KEEPING { 0 } else { same }
}

impl Kept {
    /// Keeps a text, whose tokens are those that `cache` holds.
    pub fn put(&mut self, kind: Kind, tokens: Vec<u32>, cache: TextCache) {
        if tokens.len() < WORTH_KEEPING {
            return;
        }
        // What is the beginning of the new one is in it.
        self.entries.retain(|entry| !(entry.kind.is(&kind) && tokens.starts_with(&entry.tokens)));
        self.entries.push_back(Entry { kind, tokens, cache });
    }

    /// The longest beginning of `prompt` that is kept.
    pub fn beginning(&mut self, kind: &Kind, prompt: &[u32]) -> Option<TextCache> {
        let mut best = (0, 0);
        for (index, entry) in self.entries.iter().enumerate() {
            if entry.kind.is(kind) {
                best = best.max((shared(&entry.tokens, prompt), index));
            }
        }
        let (tokens, index) = best;
        if tokens == 0 {
            return None;
        }
        let entry = self.entries.remove(index)?;
        let beginning = entry.cache.beginning(tokens);
        self.entries.push_back(entry);
        Some(beginning)
    }

    /// Gives up the text that was used least recently; whether there was one.
    pub fn give_up_one(&mut self) -> bool {
        self.entries.pop_front().is_some()
    }

    /// Gives up texts of models that are not in memory any more.
    pub fn sweep(&mut self) {
        self.entries.retain(|entry| entry.kind.base.strong_count() > 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_is_never_taken_over_whole_nor_for_a_few_tokens() {
        let long: Vec<u32> = (0..40).collect();
        assert_eq!(shared(&long, &long), 39);
        assert_eq!(shared(&long, &long[..20]), 19);
        assert_eq!(shared(&long[..20], &long), 20);
        assert_eq!(shared(&long[..10], &long), 0);
        assert_eq!(shared(&[7; 40], &long), 0);
        assert_eq!(shared(&long, &[]), 0);
    }
}
