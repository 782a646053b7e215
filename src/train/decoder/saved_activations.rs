//! Saved activations: what the backward pass of a decoder layer reads of its forward pass. Norm outputs and
//! activation functions are not saved: they are cheap to compute again.

use std::collections::BTreeMap;

use crate::train::backend::Backend;

/// The saved activations of one decoder layer.
pub(super) struct SavedActivations<B: Backend> {
    /// The layer's input.
    pub x: B::Matrix,
    /// Queries and keys before their norms, where they have one.
    pub raw_queries_and_keys: Option<[B::Matrix; 2]>,
    /// After the rotation.
    pub queries: B::Matrix,
    pub keys: B::Matrix,
    pub values: B::Matrix,
    /// Attention's output, and what its backward pass needs beside it.
    pub attended: B::Matrix,
    pub attention: B::Matrix,
    /// The residual stream between attention and MLP; `None` when both read `x`.
    pub middle: Option<B::Matrix>,
    /// Inputs of the norms after attention and MLP, where there are any.
    pub before_post_norms: Option<[B::Matrix; 2]>,
    pub gate: B::Matrix,
    pub up: Option<B::Matrix>,
    /// x · aᵀ of each adapted layer, by its pair.
    pub inner: BTreeMap<usize, B::Matrix>,
}
