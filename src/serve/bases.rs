//! Base models in memory, as many as the budget holds; the one that was used least recently makes
//! room. Called by [`super::prepare`].

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;

use super::loaded::LoadedBase;
use super::{BaseSource, ServeError};
use crate::domain::error_code::ErrorCode;
use crate::train::device::memory;
use crate::train::engine::{BackendKind, Responder};
use crate::train::model::base_model::BaseModel;

/// How long a model waits for memory that others use, before its client is told to come back.
const PATIENCE: Duration = Duration::from_secs(3);

/// How often it looks.
const LOOK: Duration = Duration::from_millis(5);

/// Base models by the memory that they may take.
pub(super) struct Bases {
    /// Bytes, of models, adapters and the keys and values of texts.
    budget: u64,
    /// The one used last at the end.
    loaded: Mutex<Vec<Arc<LoadedBase>>>,
    /// Held while a model is loaded: one at a time, so that each sees what the others take.
    loading: Mutex<()>,
}

/// What may be taken of memory when nobody says.
pub(super) fn default_budget() -> u64 {
    const WHERE_NOBODY_KNOWS: u64 = 4 << 30;
    // Jobs train on the same machine.
    memory::available().map_or(WHERE_NOBODY_KNOWS, |free| free / 2)
}

impl Bases {
    pub fn new(budget: u64) -> Self {
        Self { budget, loaded: Mutex::new(Vec::new()), loading: Mutex::new(()) }
    }

    /// The model that `wanted` names, loaded if it is not; `runtime` runs the future that fetches its
    /// files.
    ///
    /// # Errors
    /// A model that cannot be used, that is larger than the budget, or for which there is no memory
    /// now: [`ErrorCode::ModelLoading`].
    pub fn find_or_load(
        &self,
        wanted: BaseSource,
        runtime: &Handle,
    ) -> Result<Arc<LoadedBase>, ServeError> {
        let id = match &wanted {
            BaseSource::Entry(entry) => entry.id.clone(),
            BaseSource::Made { id, .. } => id.clone(),
        };
        if let Some(base) = self.find(&id) {
            return Ok(base);
        }
        let _one_at_a_time = self.loading.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(base) = self.find(&id) {
            return Ok(base);
        }
        let base = match wanted {
            BaseSource::Entry(entry) => self.load(&id, &entry.path)?,
            BaseSource::Made { load, .. } => {
                let folder = runtime.block_on(load).map_err(|reason| {
                    let message = format!("the files of {id:?} cannot be fetched: {reason}");
                    ServeError::new(ErrorCode::InternalError, message)
                })?;
                self.load(&id, folder.path())?
            }
        };
        self.lock().push(Arc::clone(&base));
        Ok(base)
    }

    /// Number of models, and bytes of these and their adapters.
    pub fn held(&self) -> (usize, u64) {
        let loaded = self.lock();
        (loaded.len(), loaded.iter().map(|base| base.held_bytes()).sum())
    }

    /// Bytes of the keys and values of all texts.
    pub fn cached_bytes(&self) -> u64 {
        self.lock().iter().map(|base| base.responder().cached_bytes()).sum()
    }

    /// Bytes that keys and values may take: what models and adapters leave, and some in any case.
    pub fn memory_of_caches(&self) -> u64 {
        const LEAST_SHARE: u64 = 8;
        self.budget.saturating_sub(self.held().1).max(self.budget / LEAST_SHARE)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<LoadedBase>>> {
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, id: &str) -> Option<Arc<LoadedBase>> {
        let mut loaded = self.lock();
        let index = loaded.iter().position(|base| base.id() == id)?;
        let base = loaded.remove(index);
        loaded.push(Arc::clone(&base));
        Some(base)
    }

    fn load(&self, id: &str, path: &Path) -> Result<Arc<LoadedBase>, ServeError> {
        let cannot = |reason: String| {
            let message = format!("the model {id:?} cannot be used: {reason}");
            ServeError::about("model", ErrorCode::InvalidModel, message)
        };
        let model = BaseModel::open(path).map_err(|error| cannot(error.to_string()))?;
        let needs = Responder::needed_bytes(&model.config, model.weights.as_ref());
        self.make_room(id, needs)?;
        let responder = Responder::load(&model.config, model.weights.as_ref(), BackendKind::Cpu)
            .map_err(|error| cannot(error.to_string()))?;
        tracing::info!(model = id, bytes = responder.held_bytes(), "model loaded for answering");
        Ok(Arc::new(LoadedBase::new(id, model, responder)))
    }

    /// Lets go of models that answer nothing, until `needs` bytes are there.
    fn make_room(&self, id: &str, needs: u64) -> Result<(), ServeError> {
        if needs > self.budget {
            let message = format!(
                "the model {id:?} takes about {}, and the server keeps models in {}: start it with \
                 more (--serve-memory)",
                gigabytes(needs),
                gigabytes(self.budget)
            );
            return Err(ServeError::new(ErrorCode::OutOfMemory, message));
        }
        let began = Instant::now();
        loop {
            let is_within = self.held().1 + needs <= self.budget;
            let is_free = memory::available().is_none_or(|free| needs <= free);
            if is_within && is_free {
                return Ok(());
            }
            let mut loaded = self.lock();
            let unused = loaded.iter().position(|base| Arc::strong_count(base) == 1);
            let Some(unused) = unused else {
                drop(loaded);
                if began.elapsed() < PATIENCE {
                    // A text may be about to end.
                    std::thread::sleep(LOOK);
                    continue;
                }
                let message = format!(
                    "there is no memory for the model {id:?} now: it takes about {}, which a \
                     training job or models that are answering hold; try again later",
                    gigabytes(needs)
                );
                return Err(ServeError::new(ErrorCode::ModelLoading, message));
            };
            let unloaded = loaded.remove(unused);
            drop(loaded);
            tracing::info!(model = unloaded.id(), "model unloaded to make room");
        }
    }
}

fn gigabytes(bytes: u64) -> String {
    format!("{:.2} GB", bytes as f64 / 1e9)
}
