//! Answers a conversation with a base model, a fine-tuned model or a checkpoint.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};

use super::body::CreateChatCompletion;
use super::chunk::ChatChoices;
use super::object::ChatCompletion;
use super::request;
use crate::domain::ids;
use crate::http::error::{ApiResult, ErrorBody};
use crate::http::extract::JsonObject;
use crate::http::generation::{Envelope, Fields, collect, source, stream};
use crate::http::middleware::authenticate::Caller;
use crate::http::state::AppState;

/// Answers a conversation, whole or as a stream of server-sent events.
#[utoipa::path(
    post, path = "/chat/completions", tag = "chat", operation_id = "createChatCompletion",
    request_body(content = CreateChatCompletion, content_type = "application/json"),
    responses(
        (
            status = 200,
            content((ChatCompletion = "application/json"), (Object = "text/event-stream"))
        ),
        (status = 400, body = ErrorBody), (status = 404, body = ErrorBody),
        (status = 429, body = ErrorBody), (status = 503, body = ErrorBody)
    )
)]
pub async fn create(
    State(state): State<AppState>,
    caller: Caller,
    JsonObject(body): JsonObject,
) -> ApiResult<Response> {
    let fields = Fields(&body);
    let model = fields.text("model")?;
    let streams = fields.stream()?;
    let (asked, style) = request::read(&fields)?;
    let source = source(&state, &caller, model).await?;
    let answers = asked.n as usize;
    let mut envelope = Envelope {
        id: ids::new_completion_id(),
        object: "chat.completion",
        created: state.clock.now(),
        model: model.to_owned(),
    };
    let events = state.models.answer(source, asked)?;
    if let Some(includes_usage) = streams {
        envelope.object = "chat.completion.chunk";
        return stream(events, answers, envelope, ChatChoices::new(style), includes_usage).await;
    }
    let whole = collect(events, answers).await?;
    Ok(Json(ChatCompletion::new(envelope, whole.answers, whole.usage, style)).into_response())
}
