//! The limit of requests at once with one key: a client that holds many streams open, or sends bodies
//! slowly, leaves connections to others.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Most requests at once with one key.
const MAX_PER_KEY: usize = 512;

/// Running requests by key. Only valid keys are counted, so there are never more entries than keys.
#[derive(Default)]
pub struct RunningRequests(Mutex<HashMap<String, usize>>);

/// A request with a key, until its reply is sent.
pub(in crate::http) struct RunningRequest {
    all: Arc<RunningRequests>,
    key_id: String,
}

impl RunningRequests {
    /// Counts a request with the key of this id; `None` when it has as many as it may have.
    pub(in crate::http) fn begin(self: &Arc<Self>, key_id: &str) -> Option<RunningRequest> {
        let mut counts = self.lock();
        let count = counts.entry(key_id.to_owned()).or_default();
        if *count >= MAX_PER_KEY {
            return None;
        }
        *count += 1;
        Some(RunningRequest { all: Arc::clone(self), key_id: key_id.to_owned() })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for RunningRequest {
    fn drop(&mut self) {
        let mut counts = self.all.lock();
        if let Some(count) = counts.get_mut(&self.key_id) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.key_id);
            }
        }
    }
}
