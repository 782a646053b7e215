//! A model in memory and the adapters attached to it. Owned by [`super::worker`].

use std::path::Path;
use std::sync::Arc;

use tokio::runtime::Handle;

use super::answer::Answer;
use super::begin::Answering;
use super::events::EventSender;
use super::request::Request;
use super::{AdapterSource, BaseSource, ServeError};
use crate::artifacts::peft;
use crate::error_code::ErrorCode;
use crate::train::base_model::BaseModel;
use crate::train::engine::{
    AttachedAdapter, BackendKind, EngineError, LoraSettings, Responder, Session,
};

/// Adapters that stay attached; the one unused for longest makes room.
const ATTACHED_ADAPTERS: usize = 8;

/// One model, ready to answer.
pub(super) struct LoadedBase {
    id: String,
    model: BaseModel,
    responder: Responder,
    /// By name, the one used last at the end.
    adapters: Vec<(String, Arc<AttachedAdapter>)>,
}

impl LoadedBase {
    /// The model that `wanted` names, loaded into `slot` if another one or none is there; `runtime`
    /// runs the future that fetches its files.
    pub(super) fn ensure<'a>(
        slot: &'a mut Option<LoadedBase>,
        wanted: BaseSource,
        runtime: &Handle,
    ) -> Result<&'a mut LoadedBase, ServeError> {
        let id = match &wanted {
            BaseSource::Entry(entry) => &entry.id,
            BaseSource::Made { id, .. } => id,
        };
        if slot.as_ref().is_none_or(|loaded| loaded.id != *id) {
            // The old one's memory is free before the new one takes its own.
            *slot = None;
            *slot = Some(match wanted {
                BaseSource::Entry(entry) => Self::load(&entry.id, &entry.path)?,
                BaseSource::Made { id, load } => {
                    let folder = runtime.block_on(load).map_err(|reason| ServeError {
                        code: ErrorCode::InternalError,
                        message: format!("the files of {id:?} cannot be fetched: {reason}"),
                    })?;
                    Self::load(&id, folder.path())?
                }
            });
        }
        slot.as_mut().ok_or_else(|| ServeError {
            code: ErrorCode::InternalError,
            message: "the base model was not kept".to_owned(),
        })
    }

    fn load(id: &str, path: &Path) -> Result<Self, ServeError> {
        let cannot = |reason: String| ServeError {
            code: ErrorCode::InvalidModel,
            message: format!("the model {id:?} cannot be used: {reason}"),
        };
        let model = BaseModel::open(path).map_err(|error| cannot(error.to_string()))?;
        let responder = Responder::load(&model.config, model.weights.as_ref(), BackendKind::Cpu)
            .map_err(|error| cannot(error.to_string()))?;
        tracing::info!(model = id, "model loaded for answering");
        Ok(Self { id: id.to_owned(), model, responder, adapters: Vec::new() })
    }

    /// The adapter, attached if it is not yet; `runtime` runs the future that fetches its bytes.
    pub(super) fn attach(
        &mut self,
        source: AdapterSource,
        runtime: &Handle,
    ) -> Result<Arc<AttachedAdapter>, ServeError> {
        if let Some(index) = self.adapters.iter().position(|(id, _)| *id == source.id) {
            let used = self.adapters.remove(index);
            let adapter = Arc::clone(&used.1);
            self.adapters.push(used);
            return Ok(adapter);
        }
        let cannot = |reason: String| ServeError {
            code: ErrorCode::InternalError,
            message: format!("the adapter of {:?} cannot be used: {reason}", source.id),
        };
        let bytes = runtime.block_on(source.load).map_err(cannot)?;
        let (config, tensors) =
            peft::read(&bytes.config, &bytes.weights).map_err(|error| cannot(error.to_string()))?;
        let lora = LoraSettings::of_peft(&config);
        let attached = self.responder.attach(&lora, &tensors);
        let adapter = Arc::new(attached.map_err(|error| cannot(error.to_string()))?);
        if self.adapters.len() >= ATTACHED_ADAPTERS {
            self.adapters.remove(0);
        }
        self.adapters.push((source.id, Arc::clone(&adapter)));
        Ok(adapter)
    }

    /// Begins a text.
    pub(super) fn new_session<'a>(
        &'a self,
        adapter: Option<&'a AttachedAdapter>,
    ) -> Result<Session<'a>, EngineError> {
        self.responder.begin(adapter)
    }

    /// The answers that a request asks for; see [`Answering::begin`].
    pub(super) fn answers(
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

    /// How many tokens it knows: the length of its logits.
    pub(super) fn vocabulary(&self) -> usize {
        self.responder.vocabulary()
    }
}
