//! The model cache: models in memory, as many as the budget holds. The least recently used one is
//! unloaded first. Called by [`super::request_preparer`].

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;

use super::error::ServeError;
use super::loaded_model::LoadedModel;
use super::source::BaseSource;
use crate::domain::error_code::ErrorCode;
use crate::train::device::memory;
use crate::train::engine::{BackendKind, InferenceEngine};
use crate::train::model::base_model::BaseModel;
use crate::train::model::fingerprint::Fingerprint;

/// How long a model waits for memory that is in use, before its client is told to come back later.
const MEMORY_WAIT: Duration = Duration::from_secs(3);

/// How often a waiting model checks the memory.
const MEMORY_POLL: Duration = Duration::from_millis(5);

/// Models in memory.
pub(super) struct ModelCache {
    /// Bytes for models, adapters and the keys and values of sequences.
    budget: u64,
    /// The most recently used one last.
    loaded: Mutex<Vec<Arc<LoadedModel>>>,
    /// Locked while weights are loaded: one model at a time, so that each load sees the memory of the others.
    loading: Mutex<()>,
    /// For each model that is being opened a lock, so that it is opened once. A folder that takes long to open
    /// delays no other model.
    opening: Mutex<HashMap<String, Arc<Mutex<()>>>>,
    /// Bytes of the machine's memory that are left to a job that waits, and until when.
    kept_free: Mutex<Option<(u64, Instant)>>,
}

/// The budget when the operator sets none, in bytes.
pub(super) fn default_budget() -> u64 {
    const IF_UNKNOWN: u64 = 4 << 30;
    // Jobs train on the same machine.
    memory::available().map_or(IF_UNKNOWN, |free| free / 2)
}

impl ModelCache {
    pub fn new(budget: u64) -> Self {
        Self {
            budget,
            loaded: Mutex::new(Vec::new()),
            loading: Mutex::new(()),
            opening: Mutex::new(HashMap::new()),
            kept_free: Mutex::new(None),
        }
    }

    /// The model of `source`, loaded if it is not yet, and again after its files have changed. `runtime`
    /// runs the future that fetches the files of a fine-tuned model.
    ///
    /// # Errors
    /// A model that cannot be used, that is larger than the budget, or for which there is no memory
    /// now: [`ErrorCode::ModelLoading`].
    pub fn find_or_load(
        &self,
        source: BaseSource,
        runtime: &Handle,
    ) -> Result<Arc<LoadedModel>, ServeError> {
        let (id, now) = match &source {
            BaseSource::Entry(entry) => (entry.id.clone(), Some(Fingerprint::of(&entry.path))),
            // What a job has made never changes.
            BaseSource::FineTuned { id, .. } => (id.clone(), None),
        };
        if let Some(model) = self.find(&id, now.as_ref()) {
            return Ok(model);
        }
        let gate = {
            let mut opening = self.opening.lock().unwrap_or_else(PoisonError::into_inner);
            // Those that nobody waits at are done.
            opening.retain(|_, gate| Arc::strong_count(gate) > 1);
            Arc::clone(opening.entry(id.clone()).or_default())
        };
        let _opened_once = gate.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(model) = self.find(&id, now.as_ref()) {
            return Ok(model);
        }
        let outdated = self.take(&id);
        let model = match source {
            BaseSource::Entry(entry) => self.load(&id, &entry.path, outdated)?,
            BaseSource::FineTuned { load, .. } => {
                let folder = runtime.block_on(load).map_err(|reason| {
                    let message = format!("the files of {id:?} cannot be fetched: {reason}");
                    ServeError::new(ErrorCode::InternalError, message)
                })?;
                self.load(&id, folder.path(), None)?
            }
        };
        Ok(model)
    }

    /// Number of models, and their bytes with those of their adapters.
    pub fn usage(&self) -> (usize, u64) {
        let loaded = self.lock();
        (loaded.len(), loaded.iter().map(|model| model.bytes()).sum())
    }

    /// Bytes of the keys and values of all sequences.
    pub fn cache_bytes(&self) -> u64 {
        self.lock().iter().map(|model| model.responder().cached_bytes()).sum()
    }

    /// Bytes that keys and values may take: what models and adapters leave of the budget, but at least
    /// a share of it.
    pub fn cache_limit(&self) -> u64 {
        const MIN_SHARE: u64 = 8;
        self.budget.saturating_sub(self.usage().1).max(self.budget / MIN_SHARE)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<LoadedModel>>> {
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The model, if it is in memory as its files are `now`.
    fn find(&self, id: &str, now: Option<&Fingerprint>) -> Option<Arc<LoadedModel>> {
        let is_current = |model: &LoadedModel| now.is_none_or(|now| model.fingerprint() == now);
        let mut loaded = self.lock();
        let index = loaded.iter().position(|model| model.id() == id && is_current(model))?;
        let model = loaded.remove(index);
        loaded.push(Arc::clone(&model));
        Some(model)
    }

    /// Takes the model out of the cache. Sequences that it runs go on with it.
    fn take(&self, id: &str) -> Option<Arc<LoadedModel>> {
        let mut loaded = self.lock();
        let index = loaded.iter().position(|model| model.id() == id)?;
        Some(loaded.remove(index))
    }

    /// Loads a model. The weights of `outdated`, which is the model as its files were before, are taken
    /// where they are still the same.
    fn load(
        &self,
        id: &str,
        path: &Path,
        outdated: Option<Arc<LoadedModel>>,
    ) -> Result<Arc<LoadedModel>, ServeError> {
        let cannot = |reason: String| {
            // Where it lies is the operator's to know.
            let reason = reason.replace(&*path.to_string_lossy(), id);
            let message = format!("the model {id:?} cannot be used: {reason}");
            ServeError::about("model", ErrorCode::InvalidModel, message)
        };
        // Before the files are read: what changes meanwhile is read at the next request.
        let fingerprint = Fingerprint::of(path);
        let model = BaseModel::open(path).map_err(|error| cannot(error.to_string()))?;
        let with_same_weights = outdated.filter(|outdated| {
            outdated.fingerprint().has_weights_of(&fingerprint)
                && outdated.model().config == model.config
        });
        if let Some(outdated) = with_same_weights {
            tracing::info!(model = id, "the model's files have changed, and were read again");
            let responder = Arc::clone(outdated.responder());
            return Ok(self.keep(LoadedModel::new(id, model, fingerprint, responder)));
        }
        let _one_at_a_time = self.loading.lock().unwrap_or_else(PoisonError::into_inner);
        let needs = InferenceEngine::needed_bytes(&model.config, model.weights.as_ref());
        self.make_room(id, needs)?;
        let responder =
            InferenceEngine::load(&model.config, model.weights.as_ref(), BackendKind::Cpu)
                .map_err(|error| cannot(error.to_string()))?;
        tracing::info!(model = id, bytes = responder.memory_use(), "model loaded for serving");
        Ok(self.keep(LoadedModel::new(id, model, fingerprint, Arc::new(responder))))
    }

    /// Puts a model among the loaded ones.
    fn keep(&self, model: LoadedModel) -> Arc<LoadedModel> {
        let model = Arc::new(model);
        self.lock().push(Arc::clone(&model));
        model
    }

    /// Unloads models without sequences until there are `needs` bytes.
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
            let is_within = self.usage().1 + needs <= self.budget;
            let wanted = needs.saturating_add(self.kept_free());
            let is_free = memory::available().is_none_or(|free| wanted <= free);
            if is_within && is_free {
                return Ok(());
            }
            if !self.unload_one() {
                if began.elapsed() < MEMORY_WAIT {
                    // A sequence may finish soon.
                    std::thread::sleep(MEMORY_POLL);
                    continue;
                }
                let message = format!(
                    "there is no memory for the model {id:?} now: it takes about {}, which a \
                     training job or models that are answering hold; try again later",
                    gigabytes(needs)
                );
                return Err(ServeError::new(ErrorCode::ModelLoading, message));
            }
        }
    }

    /// Unloads the least recently used model that runs no sequence; `false` when there is none.
    fn unload_one(&self) -> bool {
        let mut loaded = self.lock();
        let unused = loaded.iter().position(|model| Arc::strong_count(model) == 1);
        let Some(unused) = unused else { return false };
        let unloaded = loaded.remove(unused);
        drop(loaded);
        tracing::info!(model = unloaded.id(), "model unloaded to make room");
        true
    }

    /// Unloads models that run no sequence until `bytes` of the machine's memory are free, and loads none
    /// into these for as long as `time`.
    pub fn keep_free(&self, bytes: u64, time: Duration) {
        let until = (bytes > 0).then(|| (bytes, Instant::now() + time));
        *self.kept_free.lock().unwrap_or_else(PoisonError::into_inner) = until;
        if until.is_none() {
            return;
        }
        while memory::available().is_some_and(|free| free < bytes) && self.unload_one() {}
    }

    /// Bytes that no model is loaded into now.
    fn kept_free(&self) -> u64 {
        let kept_free = *self.kept_free.lock().unwrap_or_else(PoisonError::into_inner);
        kept_free.filter(|(_, until)| Instant::now() < *until).map_or(0, |(bytes, _)| bytes)
    }
}

fn gigabytes(bytes: u64) -> String {
    format!("{:.2} GB", bytes as f64 / 1e9)
}
