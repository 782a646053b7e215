//! The checkpoint whose permissions a request is about.

use crate::http::error::{ApiError, ApiResult};
use crate::http::middleware::authenticate::Caller;
use crate::http::models::{find_own, no_such_model};
use crate::http::state::AppState;

/// The error of a model without permissions: it is a base model, which every project may use, or does not exist.
pub(super) async fn no_permissions_error(
    state: &AppState,
    caller: &Caller,
    checkpoint: &str,
) -> ApiResult<ApiError> {
    if state.base_models.find(checkpoint).await.map_err(ApiError::internal)?.is_some() {
        let message = format!(
            "{checkpoint:?} is a base model, which every project may use: permissions are for \
             fine-tuned models and checkpoints"
        );
        return Ok(ApiError::field("fine_tuned_model_checkpoint", message));
    }
    Ok(no_such_model(state, caller, checkpoint).await?.with_param("fine_tuned_model_checkpoint"))
}

/// Refuses a checkpoint that does not exist or belongs to another project. A permission to use a checkpoint
/// is not a permission to share it.
pub(super) async fn check_checkpoint(
    state: &AppState,
    caller: &Caller,
    checkpoint: &str,
) -> ApiResult<()> {
    match find_own(state, caller, checkpoint).await? {
        Some(_there) => Ok(()),
        None => Err(no_permissions_error(state, caller, checkpoint).await?),
    }
}
