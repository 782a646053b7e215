//! The chat template that answers of a model are rendered with: the one that a tuned model was trained with,
//! else that of the base model.

use std::sync::Arc;

use chrono::{NaiveTime, Utc};

use super::error::ServeError;
use super::request::TemplateOverrides;
use crate::domain::chat_template::TemplateDefaults;
use crate::domain::error_code::ErrorCode;
use crate::train::model::base_model::BaseModel;
use crate::train::model::chat_template::{ChatTemplate, TemplateSettings};
use crate::train::model::error::LoadError;
use crate::train::model::kept_template::KeptTemplate;

/// A model's chat template with the settings of its job.
#[derive(Clone)]
pub(super) struct ModelTemplate {
    /// `None`: the model takes plain texts alone.
    template: Option<ChatTemplate>,
    defaults: TemplateDefaults,
    /// Tokens with which it ends turns, beside those of the tokenizer.
    pub stop_tokens: Arc<[u32]>,
}

impl ModelTemplate {
    /// Of a base model or a whole model.
    pub fn of_model(model: &BaseModel) -> Self {
        let defaults = model.template_defaults.clone();
        Self { template: model.template.clone(), defaults, stop_tokens: Arc::from([]) }
    }

    /// Of an adapter that keeps the template that it was trained with.
    pub fn kept(base: &BaseModel, kept: KeptTemplate) -> Result<Self, LoadError> {
        let template = base.compile(&kept.templates)?;
        let stops = template.as_ref().map(|template| base.stops_of(template));
        let stop_tokens = stops.unwrap_or_default().into();
        Ok(Self { template, defaults: kept.defaults, stop_tokens })
    }

    /// The template for one request; `None` when the model has none.
    ///
    /// # Errors
    /// The request names a template that there is not.
    pub fn for_request(
        &self,
        overrides: &TemplateOverrides,
    ) -> Result<Option<ChatTemplate>, ServeError> {
        let Some(template) = &self.template else { return Ok(None) };
        let template = match &overrides.name {
            None => template.clone(),
            Some(name) => template.named(name).map_err(|error| {
                let code = ErrorCode::InvalidRequest;
                ServeError::about("chat_template", code, error.to_string())
            })?,
        };
        let mut kwargs = self.defaults.kwargs.clone();
        kwargs.extend(overrides.kwargs.clone());
        // The same time for the whole request, whatever it renders.
        let time = match overrides.date.unwrap_or(self.defaults.date) {
            Some(day) => day.and_time(NaiveTime::MIN),
            None => Utc::now().naive_utc(),
        };
        Ok(Some(template.with_settings(TemplateSettings { kwargs, date: Some(time) })))
    }
}
