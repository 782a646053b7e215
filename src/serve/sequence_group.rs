//! The sequences of one prompt, before the scheduler admits them.

use std::sync::Arc;

use super::loaded_model::{LoadedModel, NamedAdapter};
use super::sequence_output::SequenceOutput;
use super::tenant::Tenant;
use super::waiting_requests::WaitingPlace;

/// The `n` sequences of one prompt. They share its tokens and run as one until it is prefilled.
pub(super) struct SequenceGroup {
    /// The model that runs them.
    pub model: Arc<LoadedModel>,
    /// The adapter beside it.
    pub adapter: Option<NamedAdapter>,
    /// Whose they are.
    pub tenant: Arc<Tenant>,
    /// The place of their request among those that wait, until this is dropped.
    #[expect(dead_code, reason = "dropped when they run")]
    pub place: Arc<WaitingPlace>,
    /// One for each sequence; there is at least one.
    pub outputs: Vec<SequenceOutput>,
}
