//! Answers a conversation with a base model, a fine-tuned model or a checkpoint.

use axum::Json;
use axum::extract::State;
use futures_util::FutureExt;
use serde::Serialize;
use serde_json::Value;
use tempfile::TempDir;
use utoipa::ToSchema;

use super::request;
use crate::base_models::BaseModelEntry;
use crate::error_code::ErrorCode;
use crate::http::authenticate::Caller;
use crate::http::error::{ApiError, ApiResult, ErrorBody};
use crate::http::extract::JsonObject;
use crate::http::models::{find_usable, no_such_model};
use crate::http::state::AppState;
use crate::ids;
use crate::model::TunedModel;
use crate::serve::{AdapterBytes, AdapterSource, BaseSource, ChatReply, FinishReason, ModelSource};

/// `object: "chat.completion"`.
#[derive(Debug, Serialize, ToSchema)]
pub struct Completion {
    id: String,
    /// `chat.completion`.
    object: &'static str,
    /// Unix seconds.
    created: i64,
    model: String,
    choices: Vec<CompletionChoice>,
    usage: Usage,
}

/// One answer.
#[derive(Debug, Serialize, ToSchema)]
pub struct CompletionChoice {
    index: usize,
    message: CompletionMessage,
    /// `stop` or `length`.
    finish_reason: &'static str,
    /// Always null.
    #[schema(value_type = Option<Object>)]
    logprobs: Option<Value>,
}

/// What the model says.
#[derive(Debug, Serialize, ToSchema)]
pub struct CompletionMessage {
    /// `assistant`.
    role: &'static str,
    content: String,
    /// Always null.
    refusal: Option<String>,
}

/// Tokens read and written.
#[derive(Debug, Serialize, ToSchema)]
pub struct Usage {
    prompt_tokens: u64,
    completion_tokens: u64,
    total_tokens: u64,
}

/// What a client sends, for the OpenAPI document.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes the body for the OpenAPI document")]
struct CreateCompletion {
    /// Base model, `ft:…` or checkpoint.
    model: String,
    /// The conversation.
    #[schema(value_type = Vec<Object>)]
    messages: Vec<Value>,
    /// Most tokens of an answer.
    max_completion_tokens: Option<u32>,
    /// The older spelling.
    max_tokens: Option<u32>,
    /// 0 (greedy) to 2, default 1.
    temperature: Option<f64>,
    /// 0 to 1, default 1.
    top_p: Option<f64>,
    /// Same seed, same answer.
    seed: Option<i64>,
    /// A text or up to four that end an answer.
    #[schema(value_type = Option<Object>)]
    stop: Option<Value>,
    /// 1 to 8 answers.
    n: Option<u32>,
    /// JSON schemas, for templates that support tools.
    #[schema(value_type = Option<Vec<Object>>)]
    tools: Option<Vec<Value>>,
}

/// Answers a conversation.
#[utoipa::path(
    post, path = "/chat/completions", tag = "chat", operation_id = "createChatCompletion",
    request_body(content = CreateCompletion, content_type = "application/json"),
    responses(
        (status = 200, body = Completion), (status = 400, body = ErrorBody),
        (status = 404, body = ErrorBody), (status = 429, body = ErrorBody)
    )
)]
pub async fn create(
    State(state): State<AppState>,
    caller: Caller,
    JsonObject(body): JsonObject,
) -> ApiResult<Json<Completion>> {
    let Some(model) = body.get("model").and_then(Value::as_str) else {
        return Err(ApiError::field("model", "model is missing"));
    };
    let asked = request::read(&body)?;
    let source = source(&state, &caller, model).await?;
    let reply = state.models.chat(source, asked).await?;
    Ok(Json(completion(model, state.clock.now(), reply)))
}

/// The model, and the adapter beside it, that a name stands for.
async fn source(state: &AppState, caller: &Caller, name: &str) -> ApiResult<ModelSource> {
    if let Some(base) = state.base_models.find(name).map_err(ApiError::internal)? {
        return Ok(ModelSource { base: BaseSource::Entry(base), adapter: None });
    }
    let Some(model) = find_usable(state, caller, name).await? else {
        return Err(no_such_model(state, caller, name).await?);
    };
    if model.is_whole {
        let load = fetch(state.clone(), model.clone()).boxed();
        let base = BaseSource::Made { id: model.id, load };
        return Ok(ModelSource { base, adapter: None });
    }
    let base: Option<BaseModelEntry> =
        state.base_models.find(&model.base_model).map_err(ApiError::internal)?;
    let Some(base) = base else {
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

/// The files of a whole model, in a folder that goes when it is dropped.
async fn fetch(state: AppState, model: TunedModel) -> Result<TempDir, String> {
    let folder =
        tempfile::tempdir_in(state.blobs.spool_dir()).map_err(|error| error.to_string())?;
    for id in model.files() {
        let file = state.store.file(id).await.map_err(|error| error.to_string())?;
        let file = file.ok_or_else(|| format!("its file {id:?} is gone"))?;
        // The name is one that we gave it when it was published.
        let to = folder.path().join(&file.filename);
        state.blobs.fetch_to(&file.blob_key, &to).await.map_err(|error| error.to_string())?;
    }
    Ok(folder)
}

/// The bytes of a model's adapter.
async fn load(state: AppState, model: TunedModel) -> Result<AdapterBytes, String> {
    let bytes = async |id: &str| {
        let file = state.store.file(id).await.map_err(|error| error.to_string())?;
        let file = file.ok_or_else(|| format!("its file {id:?} is gone"))?;
        state.blobs.bytes(&file.blob_key).await.map_err(|error| error.to_string())
    };
    Ok(AdapterBytes {
        config: bytes(&model.config_file).await?,
        weights: bytes(&model.weights_file).await?,
    })
}

fn completion(model: &str, created: i64, reply: ChatReply) -> Completion {
    let choices = reply.choices.into_iter().enumerate().map(|(index, choice)| CompletionChoice {
        index,
        message: CompletionMessage { role: "assistant", content: choice.text, refusal: None },
        finish_reason: match choice.finish_reason {
            FinishReason::Stop => "stop",
            FinishReason::Length => "length",
        },
        logprobs: None,
    });
    Completion {
        id: ids::new_completion_id(),
        object: "chat.completion",
        created,
        model: model.to_owned(),
        choices: choices.collect(),
        usage: Usage {
            prompt_tokens: reply.prompt_tokens,
            completion_tokens: reply.completion_tokens,
            total_tokens: reply.prompt_tokens + reply.completion_tokens,
        },
    }
}
