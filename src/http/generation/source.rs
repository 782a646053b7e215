//! Resolves the name of a model: a base model, a fine-tuned one or a checkpoint.

use std::collections::HashMap;

use futures_util::FutureExt;
use tempfile::TempDir;

use crate::artifacts::model::{TEMPLATE_FILE, TEMPLATE_SETTINGS_FILE};
use crate::base_models::BaseModelEntry;
use crate::domain::error_code::ErrorCode;
use crate::domain::model::TunedModel;
use crate::export::fetch::fetch_files;
use crate::http::error::{ApiError, ApiResult};
use crate::http::middleware::authenticate::Caller;
use crate::http::models::{find_usable, no_such_model};
use crate::http::state::AppState;
use crate::serve::{AdapterBytes, AdapterSource, BaseSource, ModelSource};
use crate::util::excerpt::excerpt;

/// The base model of a name, and its adapter if there is one.
pub(super) async fn source(
    state: &AppState,
    caller: &Caller,
    name: &str,
) -> ApiResult<ModelSource> {
    if let Some(base) = state.base_models.find(name).await.map_err(ApiError::internal)? {
        return Ok(ModelSource { base: BaseSource::Entry(base), adapter: None });
    }
    let Some(model) = find_usable(state, caller, name).await? else {
        return Err(no_such_model(state, caller, name).await?);
    };
    if model.is_whole {
        let load = fetch(state.clone(), model.clone()).boxed();
        let base = BaseSource::FineTuned { id: model.id, load };
        return Ok(ModelSource { base, adapter: None });
    }
    let base: Option<BaseModelEntry> =
        state.base_models.find(&model.base_model).await.map_err(ApiError::internal)?;
    let Some(base) = base else {
        let name = excerpt(name);
        let message = format!(
            "the base model {:?} of {name:?} is not there any more: pull it again",
            model.base_model
        );
        return Err(ApiError::new(ErrorCode::ModelNotFound, message).with_param("model"));
    };
    let load = load(state.clone(), model.clone()).boxed();
    let adapter = Some(AdapterSource { id: model.id, load });
    Ok(ModelSource { base: BaseSource::Entry(base), adapter })
}

/// The files of a whole model, in a temporary folder.
async fn fetch(state: AppState, model: TunedModel) -> Result<TempDir, String> {
    let folder =
        tempfile::tempdir_in(state.blobs.spool_dir()).map_err(|error| error.to_string())?;
    let brought = fetch_files(&*state.store, &state.blobs, &model, folder.path()).await;
    brought.map_err(|error| error.to_string())?;
    Ok(folder)
}

/// The bytes of a model's adapter.
async fn load(state: AppState, model: TunedModel) -> Result<AdapterBytes, String> {
    let bytes = async |id: &str| {
        let file = state.store.file(id).await.map_err(|error| error.to_string())?;
        let file = file.ok_or_else(|| format!("its file {id:?} is gone"))?;
        let bytes = state.blobs.bytes(&file.blob_key).await.map_err(|error| error.to_string())?;
        Ok::<_, String>((file.filename, bytes))
    };
    let mut others = HashMap::new();
    for id in &model.other_files {
        others.extend([bytes(id).await?]);
    }
    Ok(AdapterBytes {
        config: bytes(&model.config_file).await?.1,
        weights: bytes(&model.weights_file).await?.1,
        template: others.remove(TEMPLATE_FILE),
        template_settings: others.remove(TEMPLATE_SETTINGS_FILE),
    })
}
