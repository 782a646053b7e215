//! `/v1/models`: base models and fine-tuned ones.

pub(super) mod delete;
pub(super) mod list;
mod object;
pub(super) mod retrieve;

use super::error::{ApiError, ApiResult};
use super::middleware::authenticate::Caller;
use super::state::AppState;
use crate::domain::error_code::ErrorCode;
use crate::domain::model::TunedModel;
use crate::util::excerpt::excerpt;

/// The caller's own fine-tuned model or checkpoint of this name.
pub(super) async fn find_own(
    state: &AppState,
    caller: &Caller,
    id: &str,
) -> ApiResult<Option<TunedModel>> {
    let model = state.store.model(id).await?;
    Ok(model.filter(|model| model.project == caller.project))
}

/// A fine-tuned model or checkpoint that the caller may use: its own, or one with a permission for its project.
pub(super) async fn find_usable(
    state: &AppState,
    caller: &Caller,
    id: &str,
) -> ApiResult<Option<TunedModel>> {
    let Some(model) = state.store.model(id).await? else { return Ok(None) };
    let is_usable =
        model.project == caller.project || state.store.is_permitted(id, &caller.project).await?;
    Ok(is_usable.then_some(model))
}

/// OpenAI's 404, with the list of the caller's models.
pub(super) async fn no_such_model(
    state: &AppState,
    caller: &Caller,
    id: &str,
) -> ApiResult<ApiError> {
    /// How many models the message names.
    const MOST_NAMES: usize = 20;
    let base = state.base_models.list().await.map_err(ApiError::internal)?;
    let mut names: Vec<String> = base.iter().map(|entry| entry.id.clone()).collect();
    let tuned = state.store.list_models(&caller.project).await?;
    names.extend(tuned.into_iter().map(|model| model.id));
    let there = match names.is_empty() {
        true => "there is none: `hone models pull` downloads one".to_owned(),
        false if names.len() > MOST_NAMES => format!(
            "there is {}, and {} more: GET /v1/models lists all",
            names[..MOST_NAMES].join(", "),
            names.len() - MOST_NAMES
        ),
        false => format!("there is {}", names.join(", ")),
    };
    let message = format!("there is no model {:?}; {there}", excerpt(id));
    Ok(ApiError::new(ErrorCode::ModelNotFound, message).with_param("model"))
}
