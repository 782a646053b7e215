//! How large the numbers of a configuration may be. Each is far above that of any model, and so small that
//! nothing that is made from it before the weights are seen takes much memory.

/// Layers.
pub(super) const MOST_LAYERS: usize = 1024;

/// Heads of a layer.
pub(super) const MOST_HEADS: usize = 4096;

/// Width of a head.
pub(super) const MOST_HEAD_WIDTH: usize = 8192;

/// Width of the residual stream or of the MLP.
pub(super) const MOST_WIDTH: usize = 1 << 20;

/// Rows of the embedding.
pub(super) const MOST_TOKENS: usize = 1 << 24;

/// Tokens of the longest sequence, and of a sliding window.
pub(super) const MOST_POSITIONS: usize = 1 << 30;
