//! A model in memory and the adapters attached to it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::runtime::Handle;

use super::answer::Answer;
use super::begin::Answering;
use super::events::EventSender;
use super::request::Request;
use super::{AdapterSource, ServeError};
use crate::artifacts::peft;
use crate::domain::error_code::ErrorCode;
use crate::train::engine::{AttachedAdapter, Responder};
use crate::train::model::base_model::BaseModel;
use crate::train::model::lora::LoraSettings;

/// Share of a model's bytes that the adapters beside it may take together; the one unused for longest
/// makes room.
const ADAPTERS_SHARE: u64 = 2;

/// Adapters that stay attached in any case.
const FEWEST_ADAPTERS: usize = 2;

/// One model, ready to answer.
pub(super) struct LoadedBase {
    id: String,
    model: BaseModel,
    responder: Responder,
    /// By name, the one used last at the end.
    adapters: Mutex<Vec<(String, Arc<AttachedAdapter>)>>,
}

impl LoadedBase {
    pub fn new(id: &str, model: BaseModel, responder: Responder) -> Self {
        Self { id: id.to_owned(), model, responder, adapters: Mutex::new(Vec::new()) }
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    pub fn responder(&self) -> &Responder {
        &self.responder
    }

    /// Bytes of the model and the adapters beside it.
    pub fn held_bytes(&self) -> u64 {
        self.responder.held_bytes() + sum(&self.lock())
    }

    /// The adapter, attached if it is not yet; `runtime` runs the future that fetches its bytes.
    pub fn attach(
        &self,
        source: AdapterSource,
        runtime: &Handle,
    ) -> Result<Arc<AttachedAdapter>, ServeError> {
        if let Some(adapter) = self.find(&source.id) {
            return Ok(adapter);
        }
        let cannot = |reason: String| {
            let message = format!("the adapter of {:?} cannot be used: {reason}", source.id);
            ServeError::new(ErrorCode::InternalError, message)
        };
        let bytes = runtime.block_on(source.load).map_err(cannot)?;
        let (config, tensors) =
            peft::read(&bytes.config, &bytes.weights).map_err(|error| cannot(error.to_string()))?;
        let lora = LoraSettings::of_peft(&config);
        let attached = self.responder.attach(&lora, &tensors);
        let adapter = Arc::new(attached.map_err(|error| cannot(error.to_string()))?);
        let mut adapters = self.lock();
        // Somebody else may have attached it meanwhile.
        adapters.retain(|(id, _)| *id != source.id);
        adapters.push((source.id, Arc::clone(&adapter)));
        let most = self.responder.held_bytes() / ADAPTERS_SHARE;
        while adapters.len() > FEWEST_ADAPTERS && sum(&adapters) > most {
            adapters.remove(0);
        }
        Ok(adapter)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(String, Arc<AttachedAdapter>)>> {
        self.adapters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, id: &str) -> Option<Arc<AttachedAdapter>> {
        let mut adapters = self.lock();
        let index = adapters.iter().position(|(known, _)| known == id)?;
        let used = adapters.remove(index);
        let adapter = Arc::clone(&used.1);
        adapters.push(used);
        Some(adapter)
    }

    /// The answers that a request asks for; see [`Answering::begin`].
    pub fn answers(
        &self,
        request: Request,
        events: &EventSender,
    ) -> Result<Vec<Answer>, ServeError> {
        let answering = Answering {
            id: &self.id,
            model: &self.model,
            context_length: self.responder.context_length(),
            vocabulary: self.responder.vocabulary(),
        };
        answering.begin(request, events)
    }
}

fn sum(adapters: &[(String, Arc<AttachedAdapter>)]) -> u64 {
    adapters.iter().map(|(_, adapter)| adapter.held_bytes()).sum()
}
