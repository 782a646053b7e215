//! `/v1/models`: base models and fine-tuned ones.

pub(super) mod delete;
pub(super) mod list;
mod object;
pub(super) mod retrieve;

use super::error::{ApiError, ApiResult};
use super::state::AppState;
use crate::error_code::ErrorCode;

/// OpenAI's 404, with the list of what there is.
pub(super) async fn no_such_model(state: &AppState, id: &str) -> ApiResult<ApiError> {
    let base = state.base_models.list().map_err(ApiError::internal)?;
    let mut names: Vec<String> = base.into_iter().map(|entry| entry.id).collect();
    names.extend(state.store.list_models().await?.into_iter().map(|model| model.id));
    let there = match names.is_empty() {
        true => "there is none: `hone models pull` brings one".to_owned(),
        false => format!("there is {}", names.join(", ")),
    };
    let message = format!("there is no model {id:?}; {there}");
    Ok(ApiError::new(ErrorCode::ModelNotFound, message).with_param("model"))
}
