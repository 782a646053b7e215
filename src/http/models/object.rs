//! The model object.

use serde::Serialize;
use utoipa::ToSchema;

use crate::base_models::BaseModelEntry;
use crate::domain::model::{ORGANISATION, TunedModel};

/// `object: "model"`.
#[derive(Debug, Serialize, ToSchema)]
pub struct ModelObject {
    id: String,
    /// `model`.
    object: &'static str,
    /// Unix seconds.
    created: i64,
    owned_by: String,
    /// Base model of a fine-tuned one.
    #[serde(skip_serializing_if = "Option::is_none")]
    parent: Option<String>,
    /// Job that made a fine-tuned one.
    #[serde(skip_serializing_if = "Option::is_none")]
    job_id: Option<String>,
}

impl From<BaseModelEntry> for ModelObject {
    fn from(entry: BaseModelEntry) -> Self {
        Self {
            id: entry.id,
            object: "model",
            created: entry.created_at,
            owned_by: "base".to_owned(),
            parent: None,
            job_id: None,
        }
    }
}

impl From<TunedModel> for ModelObject {
    fn from(model: TunedModel) -> Self {
        Self {
            id: model.id,
            object: "model",
            created: model.created_at,
            owned_by: format!("org-{ORGANISATION}"),
            parent: Some(model.base_model),
            job_id: Some(model.job_id),
        }
    }
}
