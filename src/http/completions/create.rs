//! Continues texts with a base model, a fine-tuned model or a checkpoint.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};

use super::body::CreateTextCompletion;
use super::chunk::TextChoices;
use super::object::TextCompletion;
use super::request;
use crate::domain::ids;
use crate::http::error::{ApiResult, ErrorBody};
use crate::http::extract::JsonObject;
use crate::http::generation::{Envelope, Fields, collect, source, stream};
use crate::http::middleware::authenticate::Caller;
use crate::http::state::AppState;

/// Continues texts, whole or as a stream of server-sent events.
#[utoipa::path(
    post, path = "/completions", tag = "chat", operation_id = "createCompletion",
    request_body(content = CreateTextCompletion, content_type = "application/json"),
    responses(
        (
            status = 200,
            content((TextCompletion = "application/json"), (Object = "text/event-stream"))
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
    let (asked, answers) = request::read(&fields)?;
    let has_logprobs = asked.log_probabilities.is_some();
    let source = source(&state, &caller, model).await?;
    let envelope = Envelope {
        id: ids::new_text_completion_id(),
        object: "text_completion",
        created: state.clock.now(),
        model: model.to_owned(),
    };
    let events = state.models.answer(source, asked)?;
    if let Some(includes_usage) = streams {
        return stream(events, answers, envelope, TextChoices { has_logprobs }, includes_usage)
            .await;
    }
    let whole = collect(events, answers).await?;
    let reply = TextCompletion::new(envelope, whole.answers, whole.usage, has_logprobs);
    Ok(Json(reply).into_response())
}
