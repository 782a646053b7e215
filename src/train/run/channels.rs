//! How a run talks with whoever started it.

use crate::train::protocol::{Control, Progress};

/// Takes the progress messages.
pub type Sink<'a> = dyn FnMut(Progress) + 'a;

/// Gives the next control message, if one has come. A run asks between micro-batches.
pub type Controls<'a> = dyn FnMut() -> Option<Control> + 'a;
