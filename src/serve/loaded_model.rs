//! A model in memory with the adapters attached to it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::runtime::Handle;

use super::error::ServeError;
use super::model_template::ModelTemplate;
use super::source::AdapterSource;
use crate::artifacts::peft;
use crate::domain::error_code::ErrorCode;
use crate::train::engine::{AttachedAdapter, InferenceEngine};
use crate::train::model::base_model::BaseModel;
use crate::train::model::fingerprint::Fingerprint;
use crate::train::model::kept_template::KeptTemplate;
use crate::train::model::lora::LoraSettings;

/// The adapters of a model may together take the model's bytes divided by this; beyond it the least
/// recently used one is detached.
const ADAPTERS_SHARE: u64 = 2;

/// Adapters that stay attached in any case.
const MIN_ADAPTERS: usize = 2;

/// An attached adapter with its name.
#[derive(Clone)]
pub(super) struct NamedAdapter {
    /// The fine-tuned model's or checkpoint's name.
    pub id: String,
    pub attached: Arc<AttachedAdapter>,
    /// The chat template that it was trained with; adapters of earlier versions keep none.
    pub template: Option<Arc<ModelTemplate>>,
}

/// One model in memory.
pub(super) struct LoadedModel {
    id: String,
    model: BaseModel,
    /// The state that its files had when it was read.
    fingerprint: Fingerprint,
    responder: Arc<InferenceEngine>,
    /// The most recently used one last.
    adapters: Mutex<Vec<NamedAdapter>>,
}

impl LoadedModel {
    /// A model that was read when its files had this fingerprint.
    pub fn new(
        id: &str,
        model: BaseModel,
        fingerprint: Fingerprint,
        responder: Arc<InferenceEngine>,
    ) -> Self {
        let adapters = Mutex::new(Vec::new());
        Self { id: id.to_owned(), model, fingerprint, responder, adapters }
    }

    /// The state that its files had when it was read.
    pub fn fingerprint(&self) -> &Fingerprint {
        &self.fingerprint
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    /// Its tokenizer and chat template.
    pub fn model(&self) -> &BaseModel {
        &self.model
    }

    pub fn responder(&self) -> &Arc<InferenceEngine> {
        &self.responder
    }

    /// Bytes of the model and its adapters.
    pub fn bytes(&self) -> u64 {
        self.responder.memory_use() + total_bytes(&self.lock())
    }

    /// The adapter, attached if it is not yet. `runtime` runs the future that fetches its bytes.
    pub fn attach(
        &self,
        source: AdapterSource,
        runtime: &Handle,
    ) -> Result<NamedAdapter, ServeError> {
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
        let attached = Arc::new(attached.map_err(|error| cannot(error.to_string()))?);
        let kept =
            KeptTemplate::from_files(bytes.template.as_deref(), bytes.template_settings.as_deref());
        let template = match kept.map_err(|error| cannot(error.to_string()))? {
            Some(kept) => {
                let template = ModelTemplate::kept(&self.model, kept);
                Some(Arc::new(template.map_err(|error| cannot(error.to_string()))?))
            }
            None => None,
        };
        let adapter = NamedAdapter { id: source.id, attached, template };
        let mut adapters = self.lock();
        // Another request may have attached it meanwhile.
        adapters.retain(|known| known.id != adapter.id);
        adapters.push(adapter.clone());
        let limit = self.responder.memory_use() / ADAPTERS_SHARE;
        while adapters.len() > MIN_ADAPTERS && total_bytes(&adapters) > limit {
            adapters.remove(0);
        }
        Ok(adapter)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<NamedAdapter>> {
        self.adapters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, id: &str) -> Option<NamedAdapter> {
        let mut adapters = self.lock();
        let index = adapters.iter().position(|known| known.id == id)?;
        let adapter = adapters.remove(index);
        adapters.push(adapter.clone());
        Some(adapter)
    }
}

fn total_bytes(adapters: &[NamedAdapter]) -> u64 {
    adapters.iter().map(|adapter| adapter.attached.memory_use()).sum()
}
