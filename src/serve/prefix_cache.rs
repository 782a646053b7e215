//! The prefix cache: keys and values of finished sequences. A sequence that begins with the same tokens
//! (the next turn of a conversation, or another one with the same system prompt) computes only the rest.
//!
//! Tenants share nothing: see [`Tenant`]. A cached prefix is bit for bit what prefilling would compute. Owned by [`super::scheduler`].

use std::collections::VecDeque;
use std::sync::{Arc, Weak};

use super::loaded_model::{LoadedModel, NamedAdapter};
use super::tenant::Tenant;
use crate::train::engine::SequenceCache;

/// Shortest prefix, in tokens, that is worth the copy of a page.
const MIN_PREFIX: usize = 16;

/// What keys and values were computed with, and for whom. A prefix is shared only under the same key.
#[derive(Clone)]
pub(super) struct PrefixCacheKey {
    model: Weak<LoadedModel>,
    /// Name of the adapter.
    adapter: Option<String>,
    tenant: Arc<Tenant>,
}

impl PrefixCacheKey {
    pub fn new(
        model: &Arc<LoadedModel>,
        adapter: Option<&NamedAdapter>,
        tenant: &Arc<Tenant>,
    ) -> Self {
        let adapter = adapter.map(|adapter| adapter.id.clone());
        Self { model: Arc::downgrade(model), adapter, tenant: Arc::clone(tenant) }
    }

    pub fn is(&self, other: &Self) -> bool {
        self.model.ptr_eq(&other.model)
            && self.adapter == other.adapter
            && self.tenant == other.tenant
    }
}

/// Tokens with their keys and values.
struct CachedPrefix {
    key: PrefixCacheKey,
    tokens: Vec<u32>,
    cache: SequenceCache,
}

/// Prefixes of finished sequences, the most recently used one last.
#[derive(Default)]
pub(super) struct PrefixCache {
    entries: VecDeque<CachedPrefix>,
}

/// Length of the common prefix of `prompt` and the computed `tokens`, 0 if it is too short to be worth it.
/// It never covers the whole prompt: the logits of the last token must be computed.
pub(super) fn common_prefix(tokens: &[u32], prompt: &[u32]) -> usize {
    let common = tokens.iter().zip(prompt).take_while(|(one, other)| one == other).count();
    let common = common.min(prompt.len().saturating_sub(1));
    if common < MIN_PREFIX { 0 } else { common }
}

impl PrefixCache {
    /// Adds computed tokens, which are those that `cache` holds.
    pub fn insert(&mut self, key: PrefixCacheKey, tokens: Vec<u32>, cache: SequenceCache) {
        if tokens.len() < MIN_PREFIX {
            return;
        }
        // The new entry covers those that are a prefix of it.
        self.entries.retain(|entry| !(entry.key.is(&key) && tokens.starts_with(&entry.tokens)));
        self.entries.push_back(CachedPrefix { key, tokens, cache });
    }

    /// The longest cached prefix of `prompt`.
    pub fn longest_prefix(
        &mut self,
        key: &PrefixCacheKey,
        prompt: &[u32],
    ) -> Option<SequenceCache> {
        let mut best = (0, 0);
        for (index, entry) in self.entries.iter().enumerate() {
            if entry.key.is(key) {
                best = best.max((common_prefix(&entry.tokens, prompt), index));
            }
        }
        let (tokens, index) = best;
        if tokens == 0 {
            return None;
        }
        let entry = self.entries.remove(index)?;
        let prefix = entry.cache.beginning(tokens);
        self.entries.push_back(entry);
        Some(prefix)
    }

    /// Evicts the least recently used entry; whether there was one.
    pub fn evict_one(&mut self) -> bool {
        self.entries.pop_front().is_some()
    }

    /// Evicts the entries of models that are not in memory any more.
    pub fn evict_unloaded(&mut self) {
        self.entries.retain(|entry| entry.key.model.strong_count() > 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_common_prefix_is_shorter_than_the_prompt_and_not_too_short() {
        let long: Vec<u32> = (0..40).collect();
        assert_eq!(common_prefix(&long, &long), 39);
        assert_eq!(common_prefix(&long, &long[..20]), 19);
        assert_eq!(common_prefix(&long[..20], &long), 20);
        assert_eq!(common_prefix(&long[..10], &long), 0);
        assert_eq!(common_prefix(&[7; 40], &long), 0);
        assert_eq!(common_prefix(&long, &[]), 0);
    }
}
