//! Causal attention over the segments of a packed batch, forward and backward, and over the pages of a KV
//! cache.
//!
//! Heads are packed once for all products ([`packed_heads`]). A task is a block of query rows of one head.
//! The block's scores against all keys that it may see (those of shared prefixes, then its own) are in
//! memory at once, a few hundred kilobytes, never the whole matrix. Forward saves only the log-sum-exp of
//! each row; backward computes the probabilities again from it (Dao et al. 2022, "FlashAttention", without
//! its inner tiling). The gradients of a prefix's keys are summed over all segments that see it.
//!
//! A query's output does not depend on how its sequence is split into segments, where these have an even
//! number of rows: keys lie at their positions, and sums run in their order.

pub mod backward;
pub mod forward;
pub mod kv_cache;
mod layout;
mod packed_heads;
pub mod paged;
mod products;

pub use self::products::AttentionInputs;
